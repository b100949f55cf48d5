"""What the tests of hub.py and push_to_hub.py share: a local Hub with a fresh account, and a tiny saved model."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import use_local_hub
from huggingface_hub.utils import close_session
from PIL import Image
from tiny import TINY_UNET

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel, hub

LABELS = dict(enumerate(["T-shirt", *(f"garment {i}" for i in range(1, 12))]))  # more than ten
METRICS = {
    "metrics": {"fid": 3.5, "bits": {"test": 2.75}},
    "command": "scripts/evaluate.py a-command",
}
TRAIN_RESULTS = {"train_runtime": 90.0, "train_steps": 250, "train_samples": 4000, "hardware": "4 CPU cores"}
TRAIN_CONFIG = {"dataset": "zalando-datasets/fashion_mnist", "learning_rate": 1e-3, "output_dir": "/home/me/runs/tiny"}


def tiny_pipeline(seed: int = 0, labels: dict | None = LABELS, **config) -> DDPMImagePipeline:
    torch.manual_seed(seed)
    unet = DDPMUNet2DModel(**TINY_UNET | {"num_class_embeds": len(labels) + 1 if labels else None} | config)
    return DDPMImagePipeline(unet, DDPMNoiseScheduler(20, beta_schedule="squaredcos_cap_v2"), labels)


def draw(pipe) -> np.ndarray:
    """Four unconditional images, uint8: what any loader must repeat."""
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=4, generator=torch.Generator().manual_seed(0), num_inference_steps=20).images
    return np.stack([np.asarray(image) for image in images])


def tree(folder) -> dict[str, bytes]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def remote(monkeypatch):
    """The local Hub with nothing on it, logged in as alice; it can be reached during this test only."""
    local_hub = use_local_hub()
    for kept in (local_hub.repos, local_hub.lfs, local_hub.faults, local_hub.log):
        kept.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    local_hub.start()
    yield local_hub
    local_hub.stop()
    close_session()


@pytest.fixture
def no_waiting(monkeypatch):
    """Back-off pauses a thousand times shorter; gives the list of the pauses that were asked for."""
    pauses, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (pauses.append(seconds), sleep(seconds / 1000)))
    return pauses


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    grid = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    extras = {"samples": grid, "metrics": METRICS, "train_config": TRAIN_CONFIG, "train_results": TRAIN_RESULTS}
    return hub.save(tiny_pipeline(), folder, **extras)


@pytest.fixture
def saved(saved_once, tmp_path):
    """A saved model's folder, as a training run leaves it: with things in it that are not for the Hub."""
    folder = tmp_path / "tiny"
    for name, data in tree(saved_once).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for name in ("checkpoints/step-5/optimizer.bin", "logs/events.out", ".env", "unet/optimizer.pt", "wandb.key"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret")
    return folder
