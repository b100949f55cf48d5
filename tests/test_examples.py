"""The examples, at a few steps on a few images: each leaves a saved model that loads in every way."""

import shutil
import sys
from functools import partial

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, DiTTransformer2DModel
from tiny import ASSETS, ROOT

from ddpm_hf import DDPMImagePipeline
from ddpm_hf.training import Trainer, validation

sys.path.insert(0, str(ROOT / "examples"))
import dit
import fine_tune
import objective


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(validation, "IMAGES_PER_CLASS", 1)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(ASSETS / "idx"))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


OPTIONS = (
    "--max_train_steps 20 --train_batch_size 4 --validation_steps 0 --num_validation_images 0 --report_to none".split()
)


def test_another_network(tmp_path):
    folder = dit.main(["--output_dir", str(tmp_path / "dit"), "--dataset", str(ASSETS / "idx"), *OPTIONS])
    options = {"class_labels": ["7", "8"], "num_inference_steps": 2, "output_type": "pt"}
    images = []
    for load in (
        DDPMImagePipeline.from_pretrained,
        partial(DiffusionPipeline.from_pretrained, trust_remote_code=True),
    ):
        pipe = load(folder)
        pipe.set_progress_bar_config(disable=True)
        assert isinstance(pipe.unet, DiTTransformer2DModel) and pipe.null_label == 10
        images.append(pipe(generator=torch.Generator().manual_seed(0), guidance_scale=2.0, **options).images)
    assert torch.allclose(*images, atol=1e-4) and (folder / "dit.png").exists()


def test_another_objective(tmp_path):
    """With every option of training, of which the card names it."""
    options = ["--preset", "fashion-mnist", "--dataset", str(ASSETS / "idx"), *OPTIONS]
    folder = objective.main(["--output_dir", str(tmp_path / "huber"), *options])
    pipe = DDPMImagePipeline.from_pretrained(folder)
    assert pipe.null_label == 10 and tuple(pipe.unet.config.block_out_channels) == (32, 64, 96)
    told = yaml.safe_load((folder / "training_config.yaml").read_text())
    assert told["objective"] == "pseudo_huber" and told["snr_gamma"] is None
    with pytest.raises(ValueError, match=r"snr_gamma=5.0 belongs to the objectives of ddpm_hf"):
        objective.main(["--output_dir", str(tmp_path / "other"), *options, "--snr_gamma", "5"])


def test_a_stopped_example_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda run, batches: (run.signals.catch(2), step(run, batches))[1])
    options = ["--output_dir", str(tmp_path / "dit"), "--dataset", str(ASSETS / "idx"), *OPTIONS]
    assert list(dit.main(options).glob("checkpoints/step-1"))
    start, photos = str(ROOT / "checkpoints" / "ddpm-fashion-mnist"), str(ASSETS / "imagefolder")
    folder = fine_tune.main(start, photos, "--output_dir", str(tmp_path / "tuned"), *OPTIONS)
    assert list(folder.glob("checkpoints/step-1"))


def test_fine_tuning_on_photos(tmp_path, caplog):
    """Three classes in place of ten: the class table is new, all else is the trained model's."""
    shutil.copytree(ASSETS / "imagefolder", tmp_path / "photos")
    start = ROOT / "checkpoints" / "ddpm-fashion-mnist"
    arguments = ["--output_dir", str(tmp_path / "tuned"), "--learning_rate", "1e-9", *OPTIONS]
    folder = fine_tune.main(str(start), str(tmp_path / "photos"), *arguments)
    tuned, trained = (DDPMImagePipeline.from_pretrained(path) for path in (folder, start))
    assert tuned.id2label == {0: "Bag", 1: "Sneaker", 2: "Trouser"} and tuned.sampling == trained.sampling
    new = [line for line in caplog.messages if line.startswith("init_from=")]
    assert len(new) == 1 and new[0].endswith("made anew: class_embedding.weight; left out: none.")
    ours, theirs = tuned.unet.state_dict(), trained.unet.state_dict()
    for name in theirs.keys() - {"class_embedding.weight"}:
        assert torch.allclose(ours[name], theirs[name], atol=1e-4), name
