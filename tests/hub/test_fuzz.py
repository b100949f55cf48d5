"""Strange models: whatever their files hold, `hub.load` gives a pipeline or one line of ValueError, and takes no memory for it."""

import json
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from hub_fixtures import LABELS, tiny_pipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, hub

CONFIGS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SAMPLING = {"num_inference_steps": 5, "eta": 0.0, "solver_order": 2, "guidance_scale": 1.3}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> list[Path]:
    """A model of this package's classes, and one of diffusers'."""
    home, unet = tmp_path_factory.mktemp("fuzzed"), tiny_pipeline().unet
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    network = DiTTransformer2DModel(in_channels=1, out_channels=1, num_embeds_ada_norm=3, norm_num_groups=4, **sizes)
    scheduler = DDPMNoiseScheduler(20, trained_betas=torch.linspace(0.1, 0.9, 20).tolist())
    pipelines = [DDPMImagePipeline(unet, scheduler, LABELS, SAMPLING), DDPMImagePipeline(network, DDIMScheduler(20))]
    return [hub.save(pipeline, home / str(i)) for i, pipeline in enumerate(pipelines)]


def loads_or_says_why(folder: Path) -> str:
    """The reason why it does not load, or ""."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert isinstance(hub.load(folder), DDPMImagePipeline)
        reason = ""
    except (ValueError, OSError) as error:
        reason = str(error)
        assert "\n" not in reason and len(reason) < 600 and "cannot be loaded" in reason
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 200e6, f"{grown:,.0f} bytes for {folder}"
    return reason


NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 3, 7, 1000, 99_999, 10**6, 10**9, 2**63, 10**30, -0.5, 0.5, 2.0, 1e300, float("nan"), float("inf")]
)
WORDS = st.sampled_from(
    ["", "x", "DDPMScheduler", "UNet2DModel", "AutoencoderKL", "../x", "é\u2028", "A" * 5000, "AttnDownBlock2D"]
)
ODD = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def harms(draw):
    """(file, what is done to its bytes)."""
    kind = draw(st.sampled_from(["value", "value", "value", "nested", "bytes", "flip", "cut"]))
    if kind in ("value", "nested"):
        pick, odd, name = draw(st.integers(0, 99)), draw(ODD), draw(st.sampled_from(CONFIGS))

        def harm(data: bytes) -> bytes:
            config = json.loads(data)
            keys = [*sorted(config), "quantization_config", "dual_cross_attention", "text_encoder"]
            key = keys[pick % len(keys)]
            inner = config.get(key)
            if kind == "nested" and isinstance(inner, list | dict) and inner:
                inner[(list(inner) if isinstance(inner, dict) else range(len(inner)))[pick % len(inner)]] = odd
            else:
                config[key] = odd
            return json.dumps(config).encode()

        return name, harm
    name, place, new = (
        draw(st.sampled_from((*CONFIGS, WEIGHTS))),
        draw(st.floats(0, 0.999)),
        draw(st.binary(max_size=8)),
    )
    if kind == "bytes":
        return name, lambda data: new
    if kind == "cut":
        return name, lambda data: data[: int(place * len(data))]
    return name, lambda data: (start := int(place * len(data))) and data[:start] + new + data[start + len(new) :]


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(which=st.integers(0, 1), harm=harms())
def test_any_harm_is_one_line(models, tmp_path_factory, which, harm):
    folder, (name, change) = tmp_path_factory.mktemp("harmed") / "model", harm
    shutil.copytree(models[which], folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()) or b"")
    loads_or_says_why(folder)
    shutil.rmtree(folder)


ODDITIES = [  # model, file, key, value: what the message names beside the file and the key
    (0, "model_index.json", "id2label", ["a"]),
    (0, "model_index.json", "id2label", {"one": "a"}),
    (0, "model_index.json", "id2label", {"0": 3}),
    (0, "model_index.json", "unet", "DDPMUNet2DModel"),
    (0, "model_index.json", "unet", ["diffusers", 3]),
    (0, "model_index.json", "unet", ["diffusers", "DDIMScheduler"]),
    (0, "model_index.json", "unet", ["diffusers", "AutoencoderKL"]),
    (0, "model_index.json", "unet", ["diffusers", "UNet2DConditionModel"]),
    (0, "model_index.json", "scheduler", [None, None]),
    (0, "model_index.json", "sampling", [25]),
    (0, "scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
    (1, "scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
    (1, "scheduler/scheduler_config.json", "beta_end", float("nan")),
    (0, "scheduler/scheduler_config.json", "trained_betas", [0.1, float("nan")]),
    (0, "unet/config.json", "layers_per_block", 10**7),
    (1, "unet/config.json", "num_layers", 10**7),
    (1, "unet/config.json", "sample_size", 10**5),
    (1, "unet/config.json", "num_attention_heads", 10**9),
]


@pytest.mark.parametrize(("which", "name", "key", "value"), ODDITIES)
def test_an_odd_value_is_named(models, tmp_path, which, name, key, value):
    """File, key and value; and nothing of that size is allocated."""
    folder = shutil.copytree(models[which], tmp_path / "model")
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | {key: value}))
    reason = loads_or_says_why(folder)
    shown = (
        "nan" if "nan" in str(value) else value[-1] if isinstance(value, list) and value[0] == "diffusers" else value
    )
    assert Path(name).name in reason and key in reason and str(shown) in reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(models, tmp_path, value):
    folder = shutil.copytree(models[0], tmp_path / "model")
    state = load_file(folder / WEIGHTS)
    state["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(state, folder / WEIGHTS)
    assert "mid_block.resnets.0.conv1.weight have values that are not finite" in loads_or_says_why(folder)


def test_betas_beyond_one_are_refused(models, tmp_path):
    """They leave finite numbers: products of negative ones."""
    folder = shutil.copytree(models[1], tmp_path / "model")
    config = json.loads((folder / CONFIGS[2]).read_text()) | {"trained_betas": [1.5] * 20}
    (folder / CONFIGS[2]).write_text(json.dumps(config))
    assert "betas must be from 0 to 1" in loads_or_says_why(folder)


def test_large_and_deep_files_are_refused(models, tmp_path):
    for i, text in enumerate(["[" * 10**6, '{"a": ' * 10**5, "{" + " " * 2**25 + "}"]):
        folder = shutil.copytree(models[0], tmp_path / str(i) / "model")
        (folder / CONFIGS[i]).write_text(text)
        assert Path(CONFIGS[i]).name in loads_or_says_why(folder)
