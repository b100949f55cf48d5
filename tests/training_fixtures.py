"""What the tests of training share: a tiny preset, and the config of a run of six steps."""

import pytest
from accelerate.state import AcceleratorState
from tiny import ASSETS, TINY_UNET

from ddpm_hf.training import PRESETS, Preset, TrainConfig, validation

RECIPE = {"train_batch_size": 8, "learning_rate": 1e-3, "lr_warmup_steps": 2, "max_train_steps": 6, "ema_decay": 0.9}


@pytest.fixture
def tiny_preset(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # one process runs many runs here, of different precision
    unet = TINY_UNET | {"sample_size": 28, "dropout": 0.1, "num_class_embeds": None}
    scheduler = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"}
    monkeypatch.setitem(PRESETS, "tiny", Preset(unet, scheduler, RECIPE, class_conditional=True))
    monkeypatch.setattr(validation, "IMAGES_PER_CLASS", 1)  # drawing takes longer than these runs


def tiny(tmp_path, **options) -> TrainConfig:
    defaults = {
        "preset": "tiny",
        "dataset": str(ASSETS / "idx"),
        "output_dir": str(tmp_path / "run"),
        "report_to": "none",
    }
    defaults |= {"num_validation_images": 16, "validation_steps": 0, "logging_steps": 1, "random_flip": True}
    return TrainConfig(**defaults | options)
