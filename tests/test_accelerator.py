"""Ready for an accelerator: on the `meta` device, where a value that the host reads raises, the loops run to their end and launch little."""

import sys

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from operations import Operations
from tiny import TINY_UNET
from training_fixtures import tiny

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.data import ImageDataset
from ddpm_hf.distillation import Consistency, MomentMatching, Teacher
from ddpm_hf.likelihood import variational_bound
from ddpm_hf.objective import hybrid, simple
from ddpm_hf.training import Trainer, checkpoints, validation
from ddpm_hf.training.launch import make_accelerator

META = torch.device("meta")
NAMES = [str(label) for label in range(10)]
IMAGES = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
PICTURE, MASK = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
SAMPLERS = {
    "ancestral": {},
    "ancestral, a generator for each image": {"generator": [torch.Generator().manual_seed(seed) for seed in (0, 1)]},
    "DDIM": {"eta": 0.0},
    "second order": {"eta": 1.0, "solver_order": 2},
    "guided": {"class_labels": [0, 1], "guidance_scale": 2.0},
    "guided in an interval": {"class_labels": [0, 1], "guidance_scale": 2.0, "guidance_interval": (3, 15)},
    "changed": {"image": PICTURE},
    "inpainted": {"image": PICTURE, "mask_image": MASK},
}


class OneWeight(ModelMixin, ConfigMixin):
    """A network of one operation: what is launched beside it is outside of the network."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1, num_class_embeds: int = 11):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x_t, t, class_labels=None, return_dict=True):
        return (self.weight * x_t,)


def make_pipeline(network: str = "unet", variance_type: str = "fixed_small") -> DDPMImagePipeline:
    """With ten classes and a null label."""
    num_channels = 2 if "learned" in variance_type else 1
    unet = DDPMUNet2DModel(**TINY_UNET | {"num_class_embeds": 11, "out_channels": num_channels, "dropout": 0.1})
    scheduler = DDPMNoiseScheduler(20, beta_schedule="squaredcos_cap_v2", variance_type=variance_type)
    pipe = DDPMImagePipeline(unet if network == "unet" else OneWeight(), scheduler, dict(enumerate(NAMES))).to(META)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("options", SAMPLERS.values(), ids=SAMPLERS)
def test_sampling_does_not_wait(options):
    pipe = make_pipeline()
    with Operations() as operations:
        pipe(2, num_inference_steps=3, output_type="latent", **options)
    assert not operations.waits


@pytest.mark.parametrize("options", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampling_step_launches_little_outside_of_the_network(options):
    """All that a call launches, but what it does before its first step: 5 steps more, or 4 where a picture is changed by 0.8 of them."""
    pipe, launched, calls = make_pipeline("one weight"), [], []
    pipe.unet.register_forward_hook(lambda *_: calls.append(None))
    for num_inference_steps in (5, 10):
        calls.clear()
        with Operations() as operations:
            pipe(2, num_inference_steps=num_inference_steps, output_type="latent", **options)
        launched.append(len(operations.launched) - len(calls))
    assert launched[1] - launched[0] <= 20 * len(calls) / 2


def test_the_bound_of_a_batch_does_not_wait():
    pipe = make_pipeline()
    x_0 = ImageDataset(IMAGES)[[0, 1]]["x_0"]
    with Operations() as operations:
        condition, indices = pipe.encode(class_labels=[0, 1]), torch.arange(2)
        bound = variational_bound(pipe.denoise, pipe.scheduler, x_0, indices, condition, num_timesteps=5, device=META)
    assert bound.bits_per_dim.device == META and not operations.waits


@pytest.fixture
def make_trainer(tmp_path, monkeypatch, tiny_preset):
    """A run of a pipeline on the device, which has the kernels that CUDA has."""
    for kind in ("foreach", "fused"):
        name = f"_get_{kind}_kernels_supported_devices"
        supported = [*getattr(torch.utils._foreach_utils, name)(), "meta"]
        for module in (torch.utils._foreach_utils, sys.modules["torch.optim.optimizer"]):
            monkeypatch.setattr(module, name, lambda supported=supported: supported)

    monkeypatch.setattr(checkpoints, "fingerprint", lambda network: "")  # of weights that are not there

    def make(pipe, objective=simple, **options) -> Trainer:
        config = tiny(tmp_path, mixed_precision="no", label_dropout=0.1, train_batch_size=4, **options)
        accelerator = make_accelerator(config)
        for state in (PartialState, AcceleratorState):
            monkeypatch.setitem(state._shared_state, "device", META)
        data = ImageDataset(IMAGES, torch.arange(10), NAMES)
        return Trainer(pipe, data, objective, config, data, accelerator)

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def second_step(trainer: Trainer) -> Operations:
    """What the second step asks for: the first one makes the optimizer's state."""
    batches = iter([trainer.data.__getitems__([(i, i) for i in range(4)])] * 2)
    trainer.train_step(batches)
    with Operations() as operations:
        trainer.train_step(batches)
    return operations


OBJECTIVES = {
    "simple": lambda pipe: simple,
    "hybrid": lambda pipe: hybrid,
    "consistency": lambda pipe: Consistency(pipe, Teacher(pipe, pipe, 2.0)),
    "moment_matching": lambda pipe: MomentMatching(pipe, Teacher(pipe, pipe, 2.0)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_training_step_does_not_wait(make_trainer, name):
    """Loss, backward, clipping, optimizer and both kinds of averages."""
    pipe = make_pipeline(variance_type="learned_range" if name == "hybrid" else "fixed_small")
    trainer = make_trainer(pipe, OBJECTIVES[name](pipe), ema_sigma_rels=[0.05])
    assert not second_step(trainer).waits


def test_a_training_step_launches_little_outside_of_the_network(make_trainer):
    """With a condition, at times dropped. The optimizer's are AdamW, one clip of the gradient and the average, each over all weights at once."""
    launched = second_step(make_trainer(make_pipeline("one weight"))).launched
    network = ["mul", "mul", "mul", "sum"]  # forward, and backward for its input and its weight
    clip = ["foreach_norm", "stack", "norm", "add", "reciprocal", "mul", "clamp", "foreach_mul"]
    optimizer = ["foreach_add of its steps", "fused_adamw", *clip, "foreach_sub", "foreach_sub"]
    assert launched.count("aten._fused_adamw_.default") == launched.count("aten._foreach_norm.Scalar") == 1
    assert len(launched) - len(network) - len(optimizer) <= 40


def test_validation_does_not_wait(make_trainer):
    trainer = make_trainer(make_pipeline())
    with Operations() as operations:
        pipe = trainer.averaged()
        t, losses = validation.losses_of(trainer.accelerator, pipe, trainer.scheduler, trainer.data, [0, 1, 2])
    assert t.device == losses.device == META and not operations.waits
