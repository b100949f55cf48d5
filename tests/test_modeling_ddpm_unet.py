"""The U-Net against `diffusers.UNet2DModel`: the same weights in both directions, outputs, gradients; then what it refuses."""

import inspect
import json
import math
import re
import resource
import subprocess
import sys

import accelerate
import pytest
import torch
from diffusers import AutoModel, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from tiny import TINY_UNET
from torch.utils._pytree import tree_map

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel

BASE = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
# The published google/ddpm-* share these; their widths are in PUBLISHED, the table has an eighth of them.
GOOGLE = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "layers_per_block": 2,
}
CIFAR10 = GOOGLE | {
    "sample_size": 32,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
LARGE = GOOGLE | {
    "sample_size": 256,
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}
PUBLISHED = {
    "ddpm-cifar10-32": CIFAR10 | {"block_out_channels": (128, 256, 256, 256)},
    "ddpm-celebahq-256": LARGE | {"block_out_channels": (128, 128, 256, 256, 512, 512)},
    "ddpm-church-256": LARGE | {"block_out_channels": (128, 128, 256, 256, 512, 512)},
}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
ALL_ATTENTION = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("AttnDownBlock2D",) * 3,
    "up_block_types": ("AttnUpBlock2D",) * 3,
}
NO_ATTENTION = {
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
    "add_attention": False,
}
CONFIGS = {
    "base": {},
    "cifar10-32": CIFAR10 | {"block_out_channels": (16, 32, 32, 32)},
    "celebahq-256": LARGE | {"block_out_channels": (16, 16, 32, 32, 64, 64), "sample_size": 64},
    "church-256, wide": LARGE | {"block_out_channels": (16, 16, 32, 32, 64, 64), "sample_size": (32, 96)},
    "attention everywhere": ALL_ATTENTION,
    "one head": {"attention_head_dim": None},
    "head of 4": {"attention_head_dim": 4},
    "head of 3": {"attention_head_dim": 3},
    "no attention": NO_ATTENTION,
    "no attention in the middle": {"add_attention": False},
    "attention groups": {"attn_norm_num_groups": 4},
    "one group, one head": {"norm_num_groups": 1, "attention_head_dim": None},
    "no middle": {"mid_block_type": None},
    "middle scaled": {"mid_block_scale_factor": 1.41},
    "class table": {"num_class_embeds": 11},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity", "time_embedding_dim": 384},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift, attention groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "resnet resampling": RESNET,
    "resnet resampling in attention": {"downsample_type": "resnet", "upsample_type": "resnet"} | ALL_ATTENTION,
    "improved DDPM": RESNET | {"resnet_time_scale_shift": "scale_shift", "out_channels": 6, "attention_head_dim": 16},
    "dropout": {"dropout": 0.3},
    "28x28, 1 channel": {"sample_size": 28, "in_channels": 1, "out_channels": 1},
    "12x20": {"sample_size": (12, 20)},
    "6 channels": {"in_channels": 6, "out_channels": 6},
    "learned variance": {"in_channels": 1, "out_channels": 2},
    "3 layers": {"layers_per_block": 3},
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "odd time features": {"block_out_channels": (9, 18), "norm_num_groups": 3, "attention_head_dim": 9},
    "wide time": {"time_embedding_dim": 48, "freq_shift": 1, "flip_sin_to_cos": False},
    "centred": {"center_input_sample": True},
    "gelu": {"act_fn": "gelu"},
    "mish": {"act_fn": "mish"},
    "relu, eps": {"act_fn": "relu", "norm_eps": 1e-3},
}


def pair(config: dict) -> tuple[UNet2DModel, DDPMUNet2DModel]:
    """Stock's model and ours, each made from the same seed, in evaluation mode."""
    models = []
    for kind in (UNet2DModel, DDPMUNet2DModel):
        torch.manual_seed(0)
        models.append(kind(**(BASE | config)).eval())
    return tuple(models)


def inputs(config: dict, batch_size: int = 2) -> tuple:
    """x_t, a t for each image and class labels for a config."""
    config, g = BASE | config, torch.Generator().manual_seed(1)
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    x_t = torch.randn(batch_size, config.get("in_channels", 3), height, width, generator=g)
    labels = None
    if config.get("class_embed_type") == "identity":
        labels = torch.randn(batch_size, config["time_embedding_dim"], generator=g)
    elif "num_class_embeds" in config or "class_embed_type" in config:
        labels = torch.arange(batch_size)
    return x_t, torch.tensor([0, 10, 500, 999][-batch_size:]), labels


def gradients(model, x_t, t, labels) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x_t, t, labels).sample.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def rounding(model, config: dict, exact: torch.Tensor) -> float:
    """Root-mean-square error in bf16 of the output that is `exact` in float32."""
    x_t, t, labels = inputs(config)
    labels = labels.bfloat16() if config.get("class_embed_type") == "identity" else labels
    with torch.no_grad():
        output = model.to(torch.bfloat16)(x_t.bfloat16(), t, labels).sample
    assert output.dtype == torch.bfloat16
    return (output.float() - exact).square().mean().sqrt().item()


def differences(config: dict) -> dict[str, float]:
    """Between stock and ours the largest difference of outputs (a t for each image, one t for all) and of gradients; between ours with
    gradient checkpointing and without, in training mode, that of gradients; our rounding in bf16 as a multiple of stock's."""
    stock, ours = pair(config)
    x_t, t, labels = inputs(config)
    with torch.no_grad():
        exact = stock(x_t, t, labels).sample
        outputs = [(stock(x_t, s, labels).sample - ours(x_t, s, labels).sample).abs().max() for s in (t, 7, t[0])]
    theirs, mine = gradients(stock, x_t, t, labels), gradients(ours, x_t, t, labels)
    found = {"output": max(outputs).item(), "gradient": largest_difference(theirs, mine)}
    ours.train()
    runs = []
    for switch in (ours.disable_gradient_checkpointing, ours.enable_gradient_checkpointing):
        switch()
        torch.manual_seed(5)  # of dropout
        runs.append(gradients(ours, x_t, t, labels))
    found["checkpointing"] = largest_difference(*runs)
    errors = [
        rounding(model.eval(), config, exact) for model in (ours, stock) if model is ours or bf16_in_stock(config)
    ]
    return found | {"bf16": errors[0] / errors[1] if len(errors) == 2 else math.nan}


def bf16_in_stock(config: dict) -> bool:
    """Stock feeds float32 features of such labels to bf16 weights."""
    return config.get("class_embed_type") != "timestep"


def largest_difference(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    assert some.keys() == others.keys()
    return max((some[name] - others[name]).abs().max().item() for name in some)


def test_the_table_is_long_enough():
    assert len(CONFIGS) >= 25


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_same_outputs_gradients_and_rounding(config):
    found = differences(config)
    assert found["output"] < 1e-5 and found["gradient"] < 1e-4 and found["checkpointing"] == 0
    assert found["bf16"] < 1.2 or not bf16_in_stock(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_same_weights_from_a_seed_and_strict_in_both_directions(config):
    stock, ours = pair(config)
    theirs, mine = stock.state_dict(), ours.state_dict()
    assert list(mine) == list(theirs), "an optimizer's state goes by position"
    assert all(torch.equal(theirs[name], mine[name]) for name in mine)
    assert dict(stock.config) == dict(ours.config)
    for target, state in ((UNet2DModel, mine), (DDPMUNet2DModel, theirs)):
        other = target.from_config(stock.config)
        other.load_state_dict({name: value + 1 for name, value in state.items()}, strict=True)
        assert all(torch.equal(value, state[name] + 1) for name, value in other.state_dict().items())


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_sizes_have_stock_names_and_shapes(config):
    config = config | {"norm_num_groups": 32}
    with torch.device("meta"):
        states = [kind(**config).state_dict() for kind in (UNet2DModel, DDPMUNet2DModel)]
    theirs, mine = ({name: value.shape for name, value in state.items()} for state in states)
    assert theirs == mine and sum(shape.numel() for shape in mine.values()) > 35e6


def test_dropout_draws_what_stock_draws():
    """Masks are drawn in memory order, and behind an attention block, or on a CPU with few groups, the two have different ones."""
    stock, ours = pair({"dropout": 0.3} | NO_ATTENTION)
    outputs = []
    for model in (stock.train(), ours.train()):
        torch.manual_seed(5)
        outputs.append(model(*inputs({})[:2]).sample)
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5
    assert (outputs[1] - ours.eval()(*inputs({})[:2]).sample).abs().max() > 1e-2


def test_one_t_for_all_is_that_t_for_each():
    _, ours = pair({"num_class_embeds": 3})
    x_t, _, labels = inputs({"num_class_embeds": 3})
    with torch.no_grad():
        outputs = [
            ours(x_t, t, labels).sample for t in (40, torch.tensor(40), torch.tensor([40]), torch.tensor([40, 40]))
        ]
    assert all((output - outputs[0]).abs().max() < 1e-5 for output in outputs)


def test_an_image_does_not_depend_on_its_batch():
    _, ours = pair({})
    x_t, t, _ = inputs({}, batch_size=4)
    with torch.no_grad():
        alone = torch.cat([ours(x_t[i : i + 1], t[i]).sample for i in range(4)])
        assert (ours(x_t, t).sample - alone).abs().max() < 1e-5


def test_timestep_embedded_labels_in_bf16_where_stock_fails():
    stock, ours = pair(CONFIGS["class timestep"])
    x_t, t, labels = inputs(CONFIGS["class timestep"])
    with torch.no_grad():
        exact = ours(x_t, t, labels).sample
        half = [model.to(torch.bfloat16) for model in (stock, ours)]
        with pytest.raises(RuntimeError, match="dtype"):
            half[0](x_t.bfloat16(), t, labels)
        assert (half[1](x_t.bfloat16(), t, labels).sample - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_layers_stored_in_another_precision_compute_under_autocast():
    _, ours = pair({})
    x_t, t, _ = inputs({})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = ours(x_t, t).sample.float()
        ours.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        assert (ours(x_t, t).sample.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_old_attention_names_of_the_published_weights_load(tmp_path):
    stock, _ = pair(CONFIGS["cifar10-32"])
    stock.save_pretrained(tmp_path)
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in stock.state_dict().items():
        for new_name, old_name in renames.items():
            name = name.replace(f".{new_name}.", f".{old_name}.")
        old[name] = value.clone()
    assert old.keys() != stock.state_dict().keys()
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    ours, info = DDPMUNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, stock.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("kinds", [(DDPMUNet2DModel, UNet2DModel), (UNet2DModel, DDPMUNet2DModel)])
def test_saved_by_one_loads_in_the_other(tmp_path, kinds):
    source, target = kinds
    saved = source(**(BASE | CONFIGS["class table"]))
    saved.save_pretrained(tmp_path)
    loaded = target.from_pretrained(tmp_path)
    assert type(loaded) is target
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    public = [{k: v for k, v in m.config.items() if not k.startswith("_")} for m in (saved, loaded)]
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in public[0].items()} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in public[1].items()
    }


def test_channels_last():
    """On a CPU the activations are, whatever the weights', where the norms take that well."""
    _, ours = pair({"norm_num_groups": 1})
    x_t, t, _ = inputs({})
    with torch.no_grad():
        plain = ours(x_t, t).sample
        ours.to(memory_format=torch.channels_last)
        output = ours(x_t.to(memory_format=torch.channels_last), t).sample
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in (plain, output))
    assert (output - plain).abs().max() < 1e-5


@pytest.mark.parametrize("t", [torch.tensor(7), torch.tensor([0, 999])], ids=["one t", "per image"])
def test_compiles_to_one_graph(t):
    config = CONFIGS["one level"] | {"num_class_embeds": 3, "sample_size": 4, "norm_num_groups": 1}
    _, ours = pair(config)
    x_t, _, labels = inputs(config)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)  # fullgraph: a break in the graph is an error
    with torch.no_grad():
        assert (compiled(x_t, t, labels).sample - ours(x_t, t, labels).sample).abs().max() < 1e-5


def cpu_and_disk(model, folder):
    """accelerate's dispatch: each block on its own, some of them on disk."""
    names = {name.split(".")[0] for name, _ in model.named_children()}
    device_map = dict.fromkeys(names, "cpu") | {"down_blocks": "disk", "up_blocks": "disk"}
    accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=folder, force_hooks=True)


def group_offload(kind: str):
    cpu = torch.device("cpu")
    return lambda model, _: model.enable_group_offload(cpu, cpu, kind, num_blocks_per_group=1)


def hooks_that_copy_arguments(model, _):
    def copy(module, args):
        return tree_map(lambda value: value.clone() if torch.is_tensor(value) else value, args)

    for module in model.modules():
        module.register_forward_pre_hook(copy)


OFFLOADS = {
    "dispatch_model": cpu_and_disk,
    "block-level group offload": group_offload("block_level"),
    "leaf-level group offload": group_offload("leaf_level"),
    "hooks that copy arguments": hooks_that_copy_arguments,
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
def test_hooks_change_no_output(tmp_path, offload):
    """A block that changed its caller's list of skips would not see the change in a copy."""
    config = {"layers_per_block": 2, "num_class_embeds": 3}
    _, ours = pair(config)
    with torch.no_grad():
        expected = ours(*inputs(config)).sample
        offload(ours, tmp_path)
        assert torch.equal(ours(*inputs(config)).sample, expected)


def test_an_automatic_device_map(tmp_path):
    """Stock refuses "auto". Here half of the model's bytes are allowed in memory; blocks stay whole."""
    _, ours = pair(ALL_ATTENTION)
    ours.save_pretrained(tmp_path)
    memory = {"cpu": ours.get_memory_footprint() // 2}
    loaded = DDPMUNet2DModel.from_pretrained(
        tmp_path, device_map="auto", max_memory=memory, offload_folder=tmp_path / "disk"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    x_t, t, _ = inputs(ALL_ATTENTION)
    with torch.no_grad():
        assert (loaded(x_t, t).sample - ours(x_t, t).sample).abs().max() < 1e-5


def test_on_the_meta_device():
    config = BASE | CONFIGS["class table"]
    with accelerate.init_empty_weights():
        assert DDPMUNet2DModel(**config).device.type == "meta"
    with torch.device("meta"):
        empty = DDPMUNet2DModel(**config)
        labels = torch.zeros(2, dtype=torch.int64)
        for t in (5, torch.tensor([1, 2])):
            assert empty(torch.zeros(2, 3, 16, 16), t, labels).sample.shape == (2, 3, 16, 16)
    _, ours = pair(CONFIGS["class table"])
    x_t, t, labels = inputs(CONFIGS["class table"])
    with torch.no_grad():
        expected = ours(x_t, 5, labels).sample
        with torch.device("meta"):  # another default device than the model's
            assert torch.equal(ours(x_t, 5, labels).sample, expected)


@pytest.mark.parametrize(
    "parts", [(UNet2DModel, DDPMPipeline, DDPMScheduler), (DDPMUNet2DModel, DDPMImagePipeline, DDPMNoiseScheduler)]
)
def test_auto_model_finds_the_unet_of_a_pipeline(tmp_path, parts):
    kind, pipeline, scheduler = parts
    saved = kind(**TINY_UNET)
    pipeline(saved, scheduler()).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(str(tmp_path), subfolder="unet")
    assert type(loaded) is kind
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    bare = f"""
import sys, ddpm_hf
assert "torch" not in sys.modules
from diffusers import AutoModel
print(type(AutoModel.from_pretrained({str(tmp_path)!r}, subfolder="unet")).__name__)
"""
    told = subprocess.run([sys.executable, "-c", bare], check=True, capture_output=True, text=True).stdout
    assert told.split() == [kind.__name__]


def test_a_variant_is_saved_and_loaded_and_an_absent_one_is_named(tmp_path):
    saved = DDPMUNet2DModel(**TINY_UNET)
    saved.save_pretrained(tmp_path, variant="fp16")
    loaded = DDPMUNet2DModel.from_pretrained(tmp_path, variant="fp16")
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    for variant, name in ((None, "model"), ("ema", "model.ema")):
        with pytest.raises(OSError, match=rf"diffusion_pytorch_{name}\.(bin|safetensors)"):
            DDPMUNet2DModel.from_pretrained(tmp_path, variant=variant)


def test_no_other_attention_backend_is_accepted_in_silence():
    ours = DDPMUNet2DModel(**TINY_UNET)
    pipe = DDPMPipeline(ours, DDPMScheduler())
    for switch in (
        ours.enable_xformers_memory_efficient_attention,
        pipe.enable_xformers_memory_efficient_attention,
        ours.enable_npu_flash_attention,
        ours.enable_xla_flash_attention,
        lambda: ours.set_attention_backend("flash"),
    ):
        with pytest.raises(ValueError, match="scaled_dot_product_attention"):
            switch()
    ours.disable_xformers_memory_efficient_attention()
    ours.set_attention_backend("native")


def test_embeddings_of_text_in_half_precision():
    """Labels in float32, as a text encoder gives them, for weights in bfloat16. Parity is in the table, "class identity"."""
    _, ours = pair(CONFIGS["class identity"])
    x_t, t, text = inputs(CONFIGS["class identity"])
    with torch.no_grad():
        exact = ours(x_t, t, text).sample
        assert (ours(x_t, t, text.flip(0)).sample - exact).abs().max() > 1e-3
        output = ours.to(torch.bfloat16)(x_t.bfloat16(), t, text).sample
    assert (output - exact).abs().mean() < 0.05 * exact.abs().mean()


# ---------------------------------------------------------------------- refusals

NCSN = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            NCSN,
            ["SkipDownBlock2D", "AttnSkipDownBlock2D", "'DownBlock2D', 'AttnDownBlock2D', 'ResnetDownsampleBlock2D'"],
        ),
        (
            {"up_block_types": NCSN["up_block_types"]},
            ["SkipUpBlock2D", "'UpBlock2D', 'AttnUpBlock2D', 'ResnetUpsampleBlock2D'"],
        ),
        ({"time_embedding_type": "fourier"}, ["time_embedding_type", "fourier", "positional", "learned"]),
        ({"block_out_channels": (16, 32, 32)}, ["down_block_types", "block_out_channels", "(16, 32, 32)"]),
        ({"up_block_types": ("UpBlock2D",)}, ["up_block_types", "('UpBlock2D',)"]),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, ["mid_block_type", "UNetMidBlock2DCrossAttn", "None"]),
        ({"resnet_time_scale_shift": "spatial"}, ["resnet_time_scale_shift", "spatial", "scale_shift"]),
        ({"class_embed_type": "projection"}, ["class_embed_type", "projection", "timestep", "identity"]),
        ({"act_fn": "tanh"}, ["act_fn", "tanh", "silu"]),
        ({"attention_head_dim": 33}, ["attention_head_dim=33", "1 to the 32 channels"]),
        ({"norm_num_groups": 7}, ["norm_num_groups=7", "divisor", "(16, 32)"]),
        ({"attn_norm_num_groups": 7}, ["attn_norm_num_groups=7", "divisor", "(16, 32)"]),
        ({"time_embedding_type": "learned"}, ["num_train_timesteps=None", "learned"]),
        ({"block_out_channels": (2, 32), "norm_num_groups": 1, "freq_shift": 1}, ["freq_shift=1", "(2, 32)"]),
        ({"mid_block_scale_factor": 0}, ["mid_block_scale_factor=0", "more than 0"]),
        ({"dropout": 1.5}, ["dropout=1.5", "at most 1"]),
    ],
)
def test_refuses_what_it_cannot_build(config, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        DDPMUNet2DModel(**(BASE | config))
    assert all(word in str(error.value) for word in words), error.value


STRANGE = [
    -1,
    0,
    7,
    1.5,
    1.0,
    True,
    None,
    "x",
    "x" * 1000,
    [],
    {},
    [8, "x"],
    [8, -16],
    [[8], [16]],
    math.nan,
    math.inf,
    10**400,
]


@pytest.mark.parametrize("name", inspect.signature(DDPMUNet2DModel).parameters)
def test_a_config_of_a_strange_value_is_refused_by_name_or_works(name):
    """With such a value the model is built and runs, or there is one line that names the key and the value."""
    for value in STRANGE:
        with torch.device("meta"):
            try:
                ours = DDPMUNet2DModel(**(TINY_UNET | {name: value}))
            except ValueError as error:
                message = str(error)
                assert (
                    f"{name}={str(value)[:3]}" in message.replace("'", "")
                    and "\n" not in message
                    and len(message) < 400
                )
                continue
            labels = torch.zeros(2, dtype=torch.int64) if ours.class_embedding else None
            assert ours(torch.zeros(2, ours.config.in_channels, 8, 8), 5, labels).sample.shape[0] == 2


@pytest.mark.parametrize(
    "config",
    [
        {"block_out_channels": [8, "x"]},
        {"layers_per_block": -1},
        {"layers_per_block": 2**20},
        {
            "block_out_channels": [8] * 5000,
            "down_block_types": ["DownBlock2D"] * 5000,
            "up_block_types": ["UpBlock2D"] * 5000,
        },
        {"block_out_channels": [2**20, 2**20]},
        {"block_out_channels": [2**13, 2**13]},
        {"time_embedding_dim": 2**17},
        {"time_embedding_dim": 2**12, "num_class_embeds": 2**20},
        {"num_class_embeds": 2_000_000_000},
        {"in_channels": 10**12},
        {"sample_size": [2**20, 2**20]},
    ],
    ids=str,
)
def test_a_strange_config_file_allocates_nothing(tmp_path, config):
    DDPMUNet2DModel(**TINY_UNET).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for make in (
        DDPMUNet2DModel.from_pretrained,
        lambda path: DDPMUNet2DModel.from_config(DDPMUNet2DModel.load_config(path)),
    ):
        with pytest.raises(ValueError, match="|".join(config)):
            make(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"


def test_every_option_is_documented():
    for name in inspect.signature(DDPMUNet2DModel).parameters:
        assert f"\n        {name}: " in DDPMUNet2DModel.__doc__, name


def test_refuses_a_size_that_does_not_fit_and_names_those_that_do():
    model = DDPMUNet2DModel(**(BASE | ALL_ATTENTION))
    with pytest.raises(ValueError, match=r"height 30 and width 28.*multiples of 4.*height 28 or 32, width 28"):
        model(torch.randn(1, 3, 30, 28), 0)
    for size in ((28, 28), (32, 28)):
        assert model(torch.randn(1, 3, *size), 0).sample.shape == (1, 3, *size)
    with pytest.raises(ValueError, match=r"sample of shape \(3, 28, 28\): expected \(B, C, H, W\)"):
        model(torch.randn(3, 28, 28), 0)


@pytest.mark.parametrize(
    ("config", "t", "labels", "words"),
    [
        ({}, 0, torch.tensor([0, 1]), r"class_labels of shape \(2,\): this model takes no class labels"),
        ({"num_class_embeds": 3}, 0, None, "class_labels=None: this model needs class labels"),
        (
            {"num_class_embeds": 3},
            0,
            torch.zeros(2, 1, dtype=torch.int64),
            r"class_labels of shape \(2, 1\): expected \(2,\)",
        ),
        (
            {"num_class_embeds": 3},
            0,
            torch.zeros(3, dtype=torch.int64),
            r"class_labels of shape \(3,\): expected \(2,\)",
        ),
        (CONFIGS["class identity"], 0, torch.zeros(2, 5), r"class_labels of shape \(2, 5\): expected \(2, 384\)"),
        (CONFIGS["class identity"], 0, torch.zeros(2), r"class_labels of shape \(2,\): expected \(2, 384\)"),
        ({}, torch.tensor([1, 2, 3]), None, r"timestep of shape \(3,\): expected \(2,\)"),
    ],
)
def test_refuses_timesteps_and_labels_that_do_not_fit(config, t, labels, words):
    _, ours = pair(config)
    with pytest.raises(ValueError, match=words):
        ours(inputs(config)[0], t, labels)


def test_one_label_for_all():
    _, ours = pair(CONFIGS["class table"])
    x_t, t, _ = inputs(CONFIGS["class table"])
    with torch.no_grad():
        outputs = [ours(x_t, t, torch.full(shape, 2)).sample for shape in ((), (1,), (2,))]
    assert all((output - outputs[0]).abs().max() < 1e-5 for output in outputs)


if __name__ == "__main__":  # the table: python tests/test_modeling_ddpm_unet.py
    print("| config | output | gradient | gradient, checkpointing | bf16 error, of stock's |\n|---|---|---|---|---|")
    for name, config in CONFIGS.items():
        print(f"| {name} | " + " | ".join(f"{value:.2g}" for value in differences(config).values()) + " |", flush=True)
