"""A run from data to a saved model, the same run whatever its topology and its interruptions, and what it refuses."""

import gzip
import json
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel
from hub_fixtures import tiny_pipeline
from huggingface_hub import HfApi, constants
from PIL import Image
from safetensors.torch import load_file
from tiny import ASSETS, TINY_UNET
from training_fixtures import tiny

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, hub
from ddpm_hf.cli import drawing, sample
from ddpm_hf.data import ImageDataset, load_image_dataset
from ddpm_hf.objective import simple
from ddpm_hf.training import checkpoints, launch
from ddpm_hf.training import trainer as training
from ddpm_hf.training.config import TrainConfig
from ddpm_hf.training.launch import make_accelerator
from ddpm_hf.training.presets import PRESETS
from ddpm_hf.training.trainer import make_trainer, train

pytestmark = pytest.mark.usefixtures("tiny_preset")


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Averaged weights of the saved model and raw weights of the last checkpoint."""
    last = max(folder.glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))
    raw = load_file(last / "state" / "model.safetensors")
    return load_file(last / "unet" / "diffusion_pytorch_model.safetensors") | {f"raw.{k}": v for k, v in raw.items()}


def difference(one: Path, other: Path) -> float:
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def test_a_run_ends_as_a_saved_model_that_draws_a_labelled_grid(tmp_path):
    config = tiny(tmp_path, report_to="tensorboard", validation_steps=4)
    folder = train(config)
    pipe = hub.load(folder)
    assert pipe.id2label[7] == "7" and pipe.null_label == 10
    assert len(pipe(class_labels=["7", 8], guidance_scale=2.0, num_inference_steps=2).images) == 2
    assert Image.open(folder / "samples.png").height == 10 * 58  # a class each, 56 pixels and a margin high
    assert (folder / "samples" / "step-4.png").exists() and list((folder / "logs").rglob("events*"))
    (logged,) = (folder / "logs").rglob("hparams.yml")
    assert yaml.safe_load(logged.read_text()).keys() == asdict(config).keys()
    assert (folder / "run.yaml").exists() and not list(folder.glob("checkpoints/.*"))


def test_resume_gives_the_same_bits(tmp_path):
    """In float32, in one process; tests/training/test_resume.py has bf16, in processes that are killed."""
    options = {"mixed_precision": "no", "gradient_accumulation_steps": 2, "train_batch_size": 48}
    whole = train(tiny(tmp_path / "whole", **options))  # 96 of 256 images a step: steps straddle epochs
    half = tiny(tmp_path / "half", **options, checkpointing_steps=3)
    trainer, calls = make_trainer(half), []

    def die(batches, train_step=trainer.train_step):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return train_step(batches)

    trainer.train_step = die
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    resumed = train(tiny(tmp_path / "half", **options, resume=True))
    assert difference(whole, resumed) == 0


def test_accumulation_is_the_same_run_as_one_large_batch(tmp_path):
    PRESETS["tiny"].unet["dropout"] = 0.0
    one = train(tiny(tmp_path / "one", train_batch_size=32, mixed_precision="no"))
    four = tiny(tmp_path / "four", train_batch_size=8, gradient_accumulation_steps=4, mixed_precision="no")
    assert difference(one, train(four)) < 1e-4


def test_ctrl_c_saves_and_resume_goes_on(tmp_path, capsys):
    trainer = make_trainer(tiny(tmp_path))
    step = trainer.train_step

    def interrupted(batches):
        if trainer.step == 2:
            trainer.signals.catch(2)
        return step(batches)

    trainer.train_step = interrupted
    trainer.run()
    assert "Stopped by SIGINT at step 3" in capsys.readouterr().out
    assert make_trainer(tiny(tmp_path, resume=True)).step == 3


def test_a_run_goes_on_longer_but_not_with_other_batches(tmp_path):
    folder = train(tiny(tmp_path, max_train_steps=3))
    longer = make_trainer(tiny(tmp_path, resume=True, max_train_steps=12))
    assert longer.ema.decay == longer.config.ema_decay == pytest.approx(0.95)
    assert longer.ema.decay > tiny(tmp_path, max_train_steps=3).ema_decay
    with pytest.raises(ValueError, match=r"train_batch_size=4 makes steps of 4 images .* have 8"):
        make_trainer(tiny(tmp_path, resume=True, train_batch_size=4))
    told = yaml.safe_load((folder / "training_config.yaml").read_text())
    assert told["max_train_steps"] == 3 and not {"resume", "push_to_hub"} & set(told)


def test_a_truncated_checkpoint_is_passed_over(tmp_path, caplog):
    folder = train(tiny(tmp_path, checkpointing_steps=3))
    weights = folder / "checkpoints" / "step-6" / "state" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert make_trainer(tiny(tmp_path, resume=True)).step == 3
    assert "step-6 is damaged" in caplog.text
    (folder / "checkpoints" / "step-3" / "state" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        make_trainer(tiny(tmp_path, resume=True))


@pytest.mark.parametrize("name", ["state/model.safetensors", "state/optimizer.bin", "unet/config.json"])
def test_a_flipped_byte_is_found(tmp_path, caplog, name):
    folder = train(tiny(tmp_path, checkpointing_steps=3))
    path = folder / "checkpoints" / "step-6" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoints.newest(folder).name == "step-3" and f"step-6 is damaged ({name})" in caplog.text


@pytest.mark.parametrize("manifest", ["[]", "3", '{"sha256": 4}', '{"sha256": {"../../run.yaml": 1}}', "{"])
def test_a_manifest_of_another_shape_is_a_damaged_checkpoint(tmp_path, manifest):
    folder = train(tiny(tmp_path, checkpointing_steps=3))
    (folder / "checkpoints" / "step-6" / "state" / "manifest.json").write_text(manifest)
    (folder / "checkpoints" / "step-²").mkdir()
    assert checkpoints.newest(folder).name == "step-3"


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    train(tiny(tmp_path, max_train_steps=3))
    other = train(tiny(tmp_path / "other", seed=7, max_train_steps=3))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(other / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="step-3 is of another run, with seed=7"):
        make_trainer(tiny(tmp_path, resume=True))


def test_two_runs_do_not_share_a_folder(tmp_path):
    first, second = (make_trainer(tiny(tmp_path)) for _ in range(2))
    step = first.train_step

    def meanwhile(batches):
        with pytest.raises(ValueError, match="another run is training there"):
            second.run()
        return step(batches)

    first.train_step = meanwhile
    first.run()
    assert first.step == 6


def test_a_run_that_was_refused_in_its_first_step_can_be_corrected(tmp_path):
    """A size that the levels cannot halve is refused before anything is written; what an older version wrote is replaced."""
    odd = PRESETS["tiny"].unet | {"sample_size": 27}
    PRESETS["odd"] = replace(PRESETS["tiny"], unet=odd)
    try:
        with pytest.raises(ValueError, match="height 27"):
            make_trainer(tiny(tmp_path, preset="odd"))
    finally:
        del PRESETS["odd"]
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    tiny(tmp_path, seed=3).save(tmp_path / "run" / "run.yaml")
    assert make_trainer(tiny(tmp_path)).step == 0


@pytest.mark.parametrize("given", [None, 2])
def test_accumulation_is_the_runs_own_or_the_launchers(tmp_path, monkeypatch, given):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    trainer = make_trainer(tiny(tmp_path, gradient_accumulation_steps=given))
    steps = given or 4
    assert trainer.total_batch_size == 8 * steps and trainer.accelerator.gradient_accumulation_steps == steps
    trainer.run()
    assert trainer.lr_scheduler.last_epoch == 6


def test_a_signal_in_the_last_phase_is_heeded(tmp_path, capsys, monkeypatch):
    """Between sampling steps; the checkpoint stands, and --resume finishes. A second signal ends the run at once."""
    trainer = make_trainer(tiny(tmp_path))
    steps, step = [], trainer.average.scheduler.step

    def counted(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            trainer.signals.catch(signal.SIGTERM)
        return step(*arguments, **options)

    trainer.average.scheduler.step = counted
    trainer.run()
    assert len(steps) == 3 and "Stopped by SIGTERM at step 6" in capsys.readouterr().out
    assert not (tmp_path / "run" / "model_index.json").exists()
    monkeypatch.setattr(launch, "PASSED_ON_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        trainer.signals.catch(signal.SIGTERM)
    assert (train(tiny(tmp_path, resume=True)) / "model_index.json").exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tmp_path):
    trainer = make_trainer(tiny(tmp_path, logging_steps=3, checkpointing_steps=2))
    step = trainer.train_step

    def diverge(batches):
        for path in trainer.folder.glob("checkpoints/*/state/manifest.json"):  # the error stays the one that counts
            path.write_text("damaged")
        return step(batches) * (float("nan") if trainer.step == 4 else 1)

    trainer.train_step = diverge
    with pytest.raises(FloatingPointError, match=r"step 5.*step-4"):
        trainer.run()


def test_a_step_that_fp16_skips_moves_neither_schedule_nor_averages(tmp_path, monkeypatch):
    trainer = make_trainer(tiny(tmp_path, ema_sigma_rels=[0.1]))
    batches = iter(trainer._loader())

    def moved() -> tuple[int, int, int]:
        return trainer.lr_scheduler.last_epoch, trainer.ema.optimization_step, trainer.averages.num_steps

    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", True)
    assert trainer.train_step(batches)[1] == 0 and moved() == (0, 0, 0)  # its gradients overflowed: they have no norm
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", False)
    assert trainer.train_step(batches)[1] > 0 and moved() == (1, 1, 1)


def test_fp16_skips_a_step_that_overflows(tmp_path, monkeypatch):
    """With the gradient scaler itself, which a CPU has, too: Accelerate must learn of what it skips."""
    config = tiny(tmp_path, mixed_precision="no")
    accelerator = make_accelerator(config)
    monkeypatch.setattr(training, "make_accelerator", lambda _: accelerator)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    trainer = make_trainer(replace(config, mixed_precision="fp16"))
    batches, before = iter(trainer._loader()), [p.detach().clone() for p in trainer.model.parameters()]
    assert trainer.train_step(batches)[1] == 0 and trainer.lr_scheduler.last_epoch == 0
    assert all(map(torch.equal, trainer.model.parameters(), before))
    accelerator.scaler.update(1.0)
    assert 0 < trainer.train_step(batches)[1] < float("inf") and trainer.lr_scheduler.last_epoch == 1


def test_a_resumed_run_follows_the_options_that_it_is_given(tmp_path):
    train(tiny(tmp_path, max_train_steps=3, ema_sigma_rels=[0.1]))
    whole = make_trainer(tiny(tmp_path, resume=True, max_train_steps=3, ema_sigma_rels=[0.1]))
    new = {"learning_rate": 1e-5, "adam_beta2": 0.9, "weight_decay": 0.0, "max_train_steps": 6, "lr_warmup_steps": 2}
    trainer = make_trainer(tiny(tmp_path, resume=True, ema_sigma_rels=[0.1], **new))
    (group,) = trainer.optimizer.param_groups
    fresh = make_trainer(tiny(tmp_path / "fresh", **new))
    for _ in range(3):
        fresh.lr_scheduler.step()
    assert 0 < group["lr"] == fresh.lr_scheduler.get_last_lr()[0] == trainer.lr_scheduler.get_last_lr()[0] < 1e-5
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.9), 0.0)
    for each in (trainer, fresh):
        each.lr_scheduler.step()
    assert group["lr"] == fresh.lr_scheduler.get_last_lr()[0]
    assert whole.optimizer.param_groups[0]["lr"] == whole.lr_scheduler.get_last_lr()[0] == 0  # the end of the cosine


def test_old_checkpoints_go(tmp_path):
    folder = train(tiny(tmp_path, checkpointing_steps=1, checkpoints_total_limit=2))
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == ["step-5", "step-6"]
    (folder / "checkpoints" / "step-6" / "state" / "model.safetensors").unlink()
    trainer = make_trainer(tiny(tmp_path, resume=True, checkpoints_total_limit=1, max_train_steps=7))
    trainer.save_checkpoint()  # as a signal would before step 6: the broken one counts for nothing
    assert [path.name for path in folder.glob("checkpoints/*")] == ["step-5"]


def test_images_without_labels_train_an_unconditional_model(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, path in enumerate(sorted((ASSETS / "imagefolder").rglob("*.png"))):
        Image.open(path).save(photos / f"{i}.png")
    folder = train(tiny(tmp_path, dataset=str(photos), max_train_steps=2))
    pipe = hub.load(folder)
    assert pipe.unet.config.num_class_embeds is None and len(pipe(2, num_inference_steps=2).images) == 2


def test_a_learned_variance_is_learned(tmp_path):
    """Doubled channels through weighing, bf16, validation and sampling; the variance's weights leave their first values."""
    tiny_preset = PRESETS["tiny"]
    tiny_preset.unet["out_channels"], tiny_preset.scheduler["variance_type"] = 2, "learned_range"
    trainer = make_trainer(tiny(tmp_path, snr_gamma=5.0, mixed_precision="bf16"))
    before = trainer.model.conv_out.weight.detach().clone()
    trainer.run()
    figures, _ = trainer.validate()
    moved = (trainer.model.conv_out.weight - before).abs().amax(dim=(1, 2, 3))
    assert (moved > 1e-4).all() and 0 < figures["validation_loss"] < 2
    pipe = hub.load(tmp_path / "run")
    assert pipe.unet.config.out_channels == 2 and pipe.scheduler.config.variance_type == "learned_range"
    images = pipe(2, class_labels=[0, 1], guidance_scale=2.0, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 28, 28, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "epsilon", "variance_type": "learned_range"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_gamma": 5.0},
        {"prediction_type": "sample", "rescale_betas_zero_snr": True, "variance_type": "learned_range"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_run_chooses_what_is_predicted(tmp_path, options):
    pipe = hub.load(train(tiny(tmp_path, **options, max_train_steps=2)))
    assert options.items() - {("snr_gamma", 5.0)} <= pipe.scheduler.config.items()
    assert pipe.unet.config.out_channels == (2 if "variance_type" in options else 1)
    assert (pipe.scheduler.alphas_cumprod[-1] == 0) == ("rescale_betas_zero_snr" in options)
    with pytest.raises(ValueError, match="another prediction_type"):
        make_trainer(tiny(tmp_path, resume=True))


def test_sample_takes_a_name_before_a_number():
    """Classes named "1", "2", "3" have the labels 0, 1, 2: a name wins, and the null label is no class."""

    class Pipe:
        id2label = {0: "1", 1: "2", 2: "3"}
        get_label_ids = DDPMImagePipeline.get_label_ids

    assert drawing.class_ids(Pipe(), ["1", "3"]) == [0, 2] and drawing.class_ids(Pipe(), None) == [0, 1, 2]
    assert drawing.class_ids(Pipe(), ["0"]) == [0]
    with pytest.raises(ValueError, match="4"):
        drawing.class_ids(Pipe(), ["4"])


def test_resume_never_replaces_a_model_that_is_no_run(tmp_path):
    train(tiny(tmp_path, max_train_steps=1))
    (tmp_path / "run" / "run.yaml").unlink()
    with pytest.raises(ValueError, match="already holds"):
        make_trainer(tiny(tmp_path, resume=True))


def test_sample_script(tmp_path, capsys):
    folder = train(tiny(tmp_path, max_train_steps=1))
    grid, gif = tmp_path / "grid.png", tmp_path / "grid.gif"
    arguments = [str(folder), "--num_images", "4", "--num_inference_steps", "3", "--output", str(grid)]
    assert sample.main([*arguments, "--class_labels", "7", "8", "--gif", str(gif)]) == 0
    assert Image.open(grid).height == 2 * 58 and Image.open(gif).n_frames == 3
    assert sample.main([*arguments, "--class_labels", "Hat"]) == 2
    assert "Hat" in capsys.readouterr().err


def test_sample_draws_classes_without_names(tmp_path):
    nameless, grid = tiny_pipeline(labels=None, num_class_embeds=3), tmp_path / "grid.png"
    options = f"--num_images 4 --class_labels 2 --num_inference_steps 2 --output {grid}".split()
    assert sample.main([str(hub.save(nameless, tmp_path / "nameless")), *options]) == 0
    assert Image.open(grid).height == 58 and 4 * 58 < Image.open(grid).width < 5 * 58  # with a margin for the label


def test_sample_takes_the_labels_of_any_network():
    shape = dict(sample_size=8, patch_size=4, in_channels=1, num_layers=1, num_attention_heads=1, attention_head_dim=8)
    network = DiTTransformer2DModel(**shape, num_embeds_ada_norm=3, norm_num_groups=1)
    assert drawing.class_ids(DDPMImagePipeline(network, DDPMNoiseScheduler()), ["2"]) == [2]


IMAGES = torch.zeros(12, 1, 28, 28, dtype=torch.uint8)
LABELS = torch.arange(12) % 3


@pytest.mark.parametrize(
    ("parts", "data", "message"),
    [
        ({"scheduler": DDIMScheduler(20)}, (IMAGES, LABELS, ["a", "b", "c"]), "pipeline.scheduler is a DDIMScheduler"),
        ({}, (IMAGES,), r"data has \['x_0'\]: this pipeline is trained with class_labels as well"),
        ({}, (IMAGES.expand(-1, 3, -1, -1), LABELS, ["a", "b", "c"]), "3 channels: this network takes 1"),
        (
            {"id2label": {0: "a", 1: "b"}},
            (IMAGES, LABELS, ["a", "b", "c"]),
            "data has 3 classes: this pipeline knows 2",
        ),
        ({"id2label": None}, (IMAGES, LABELS, ["a", "b", "c"]), "label_dropout=0.1 puts in the null, and 0 is none: "),
    ],
)
def test_parts_that_do_not_go_together_are_refused(tmp_path, parts, data, message):
    pipeline = tiny_pipeline(labels={0: "a", 1: "b", 2: "c"}, sample_size=28)
    pipeline = DDPMImagePipeline(**{**pipeline.components, **pipeline.parameters, **parts})
    with pytest.raises(ValueError, match=message):
        training.Trainer(pipeline, ImageDataset(*data), simple, tiny(tmp_path))


def test_condition_images_of_another_kind_are_refused(tmp_path):
    pipeline, data = tiny_pipeline(labels=None, sample_size=28, in_channels=3), ImageDataset(IMAGES)
    pipeline = DDPMImagePipeline(pipeline.unet, pipeline.scheduler, image_condition="masked")
    data.image_condition = "lower_resolution"  # of the same shape
    with pytest.raises(ValueError, match="data has image_condition='lower_resolution': this pipeline takes 'masked'"):
        training.Trainer(pipeline, data, simple, tiny(tmp_path))


def test_labels_are_dropped_by_the_run_alone(tmp_path):
    """DiT's own dropout of labels, a tenth in each block, would come on top of label_dropout."""
    shape = dict(sample_size=28, patch_size=4, in_channels=1, out_channels=1, num_layers=1, num_attention_heads=1)
    network = DiTTransformer2DModel(**shape, attention_head_dim=8, num_embeds_ada_norm=3, norm_num_groups=1)
    pipeline = DDPMImagePipeline(network.train(), DDPMNoiseScheduler(20), {0: "a", 1: "b", 2: "c"})
    torch.nn.init.normal_(network.proj_out_1.weight)
    torch.nn.init.normal_(network.proj_out_2.weight)
    training.Trainer(pipeline, ImageDataset(IMAGES, LABELS, ["a", "b", "c"]), simple, tiny(tmp_path))
    output = pipeline.denoise(torch.ones(64, 1, 28, 28), 5, pipeline.encode(class_labels=[1] * 64))
    assert (output - output[:1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "does/not/exist/"}, "does/not/exist"),
        ({"label_column": "colour"}, "colour"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"report_to": "aim"}, "report_to='aim' is not installed"),
        ({"report_to": "paper"}, "paper"),
    ],
)
def test_refused_before_any_work(tmp_path, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        make_trainer(tiny(tmp_path, **options))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_another_run_is_refused(tmp_path):
    train(tiny(tmp_path, max_train_steps=1))
    with pytest.raises(ValueError, match="already holds a run"):
        make_trainer(tiny(tmp_path))
    with pytest.raises(ValueError, match="another seed, torch_compile:"):
        make_trainer(tiny(tmp_path, seed=1, torch_compile=True, resume=True))
    preset, model = PRESETS["tiny"], tmp_path / "model"
    UNet2DModel(**preset.unet).save_config(model / "unet")
    DDIMScheduler(num_train_timesteps=10).save_config(model / "scheduler")
    with pytest.raises(ValueError, match="another preset:"):
        make_trainer(tiny(tmp_path, preset=str(model), resume=True))
    another = {"mixed_precision": "fp16"}
    assert tiny(tmp_path, **another).differences(tmp_path / "run" / "run.yaml") == ["mixed_precision"]
    assert tiny(tmp_path, mixed_precision="no").differences(tmp_path / "run" / "run.yaml") == []


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    shutil.copytree(ASSETS / "idx", tmp_path / "data")
    options = {"dataset": str(tmp_path / "data"), "num_validation_images": 0}
    train(tiny(tmp_path, **options, max_train_steps=1))
    labels = tmp_path / "data" / "train-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(content[:-1] + bytes([(content[-1] + 1) % 10])))
    with pytest.raises(ValueError, match=r"data' does not hold the images that .*step-1 was trained on"):
        make_trainer(tiny(tmp_path, **options, resume=True))


def test_the_same_run_in_other_words_goes_on(tmp_path):
    """The preset's own values named, and the same images at another path; run.yaml is one of an earlier version."""
    folder = train(tiny(tmp_path, max_train_steps=1))
    path, shown = folder / "run.yaml", yaml.safe_load((folder / "run.yaml").read_text())
    assert not {"prediction_type", "variance_type"} & set(shown)
    path.write_text(yaml.safe_dump(shown | {"of_an_earlier_version": 1}))
    shutil.copytree(ASSETS / "idx", tmp_path / "copy")
    words = {"prediction_type": "epsilon", "variance_type": "fixed_small", "dataset": str(tmp_path / "copy")}
    assert make_trainer(tiny(tmp_path, **words, resume=True)).step == 1
    TrainConfig("cifar10").save(path)  # which names no number of channels
    assert TrainConfig("cifar10", prediction_type="epsilon", variance_type="fixed_large").differences(path) == []
    path.write_text(yaml.safe_dump(shown | {"preset": "of an earlier version"}))
    with pytest.raises(ValueError, match=r"run.yaml is no config of this version: preset='of an earlier version'"):
        make_trainer(tiny(tmp_path, resume=True))


def test_a_network_with_classes_is_not_the_same_without(tmp_path):
    for name, labels in {
        "labelled": {"num_class_embeds": 3},
        "copy": {"num_class_embeds": 3},
        "unlabelled": {},
    }.items():
        for part, config in {"unet/config.json": TINY_UNET | labels, "scheduler/scheduler_config.json": {}}.items():
            (tmp_path / name / part).parent.mkdir(parents=True)
            (tmp_path / name / part).write_text(json.dumps(config))
    TrainConfig(str(tmp_path / "labelled")).save(tmp_path / "run.yaml")
    assert TrainConfig(str(tmp_path / "copy")).differences(tmp_path / "run.yaml") == []
    assert TrainConfig(str(tmp_path / "unlabelled")).differences(tmp_path / "run.yaml") == ["preset"]


def test_a_checkpoint_with_its_parameters_in_another_order_is_refused(tmp_path):
    """The state of an optimizer goes by position."""
    manifest = train(tiny(tmp_path, max_train_steps=1)) / "checkpoints" / "step-1" / "state" / "manifest.json"
    facts = json.loads(manifest.read_text())
    for parameters in (facts["parameters"][::-1], None):
        manifest.write_text(json.dumps(facts | {"parameters": parameters}))
        with pytest.raises(ValueError, match="step-1 is of another version of ddpm_hf"):
            make_trainer(tiny(tmp_path, resume=True))


def test_a_checkpoint_of_an_earlier_version_says_that_the_noise_is_another(tmp_path, capsys):
    manifest = train(tiny(tmp_path, max_train_steps=1)) / "checkpoints" / "step-1" / "state" / "manifest.json"
    make_trainer(tiny(tmp_path, resume=True))
    assert "draws other noise" not in str(capsys.readouterr())
    facts = json.loads(manifest.read_text())
    del facts["noise"]
    manifest.write_text(json.dumps(facts))
    make_trainer(tiny(tmp_path, resume=True))
    assert "draws other noise" in str(capsys.readouterr())


def test_a_lone_rank_of_a_larger_launch_is_refused(tmp_path, monkeypatch):
    for name, value in {"MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}.items():
        monkeypatch.setenv(name, value)  # what `accelerate launch --cpu --num_processes 2` leaves its one process
    with pytest.raises(
        ValueError, match=r"2 ranks.* where your shell exports MASTER_PORT, unset it for a single rank"
    ):
        make_trainer(tiny(tmp_path))


@pytest.mark.parametrize("distributed_type", ["MULTI_GPU", "FSDP", "DEEPSPEED"])
def test_what_would_not_train_as_asked_is_refused(tmp_path, monkeypatch, distributed_type):
    """FSDP without GPUs is silently none in Accelerate; FSDP1 and DeepSpeed keep weights where the averages do not see them."""
    if distributed_type == "MULTI_GPU":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(distributed_type))
    with pytest.raises(
        ValueError, match="FSDP was asked for" if distributed_type == "MULTI_GPU" else "fsdp_version: 2"
    ):
        make_trainer(tiny(tmp_path))


def test_streamed_images_are_flipped_and_resume(tmp_path):
    options = {
        "dataset": str(ASSETS / "imagefolder"),
        "streaming": True,
        "mixed_precision": "no",
        "train_batch_size": 2,
    }
    whole, half = (make_trainer(tiny(tmp_path / name, **options)) for name in ("whole", "half"))
    step = half.train_step

    def interrupted(batches):
        if half.step == 2:
            half.signals.catch(signal.SIGINT)
        return step(batches)

    half.train_step = interrupted
    assert whole.data.random_flip and whole.data.seed == 0
    folder, _ = whole.run(), half.run()
    assert half.step == 3
    (another := tmp_path / "half" / "run" / "checkpoints" / "step-3" / "state" / "stream-1.json").write_text("{}")
    with pytest.raises(ValueError, match=r"on 1 rank.* keeps the place of 2 .*resume on 2"):
        make_trainer(tiny(tmp_path / "half", **options, resume=True))
    another.unlink()
    assert difference(folder, train(tiny(tmp_path / "half", **options, resume=True))) == 0


def test_the_test_data_is_real_and_balanced():
    data = load_image_dataset(str(ASSETS / "idx"), num_channels=1, image_size=28)
    assert data.images.dtype == torch.uint8 and data.labels.bincount().min() > 10


def test_what_training_took_is_on_the_card_resumes_included(tmp_path):
    folder = train(tiny(tmp_path, max_train_steps=3))
    first = json.loads((folder / "train_results.json").read_text())
    manifest = checkpoints.read_manifest(folder / "checkpoints" / "step-3")
    assert 0 < manifest["seconds"] < first["train_runtime"] + 0.05
    assert (first["train_steps"], first["train_samples"]) == (3, 24)
    hour = manifest | {"seconds": 3600.0}
    (folder / "checkpoints" / "step-3" / "state" / "manifest.json").write_text(json.dumps(hour))
    train(tiny(tmp_path, resume=True))
    second = json.loads((folder / "train_results.json").read_text())
    assert second["train_samples"] == 48 and 3600 < second["train_runtime"] < 3900
    card = (folder / "README.md").read_text()
    assert "Training took 6" in card and f"6 steps on {second['hardware']}" in card


def test_a_finished_run_is_pushed(tmp_path, remote, capsys):
    train(tiny(tmp_path, max_train_steps=1, push_to_hub=True, hub_model_id="alice/run", hub_private_repo=True))
    assert remote.repo("alice/run").private and set(remote.repo("alice/run").refs) == {"main", "stock"}
    assert f"Pushed to {remote.endpoint}/alice/run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("token", "options", "message"),
    [
        (None, {}, "no token, or one that it does not know: .*HF_TOKEN"),
        ("hf_wrong", {}, "no token, or one that it does not know: .*HF_TOKEN"),
        ("hf_alice_read", {}, "role 'write'"),
        ("hf_alice_read", {"hub_model_id": "alice/public"}, "role 'write'"),
        ("hf_bob", {}, "check the owner"),
        ("hf_alice", {"hub_model_id": "alice/public", "hub_private_repo": True}, "exists and is public"),
        ("offline", {}, "offline mode is enabled"),
    ],
)
def test_a_push_that_could_not_be_is_refused_before_the_run(tmp_path, remote, monkeypatch, token, options, message):
    HfApi().create_repo("alice/public")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", token == "offline")
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(hub.HubError, match=f"Could not push .*run to alice/.*{message}"):
        train(tiny(tmp_path, **{"push_to_hub": True, "hub_model_id": "alice/run"} | options))
    assert not (tmp_path / "run").exists() and list(remote.repos) == [("model", "alice/public")]


def test_a_failed_push_keeps_the_run(tmp_path, remote, no_waiting, capsys):
    """The run ends well, its model is whole, and the command that it names finishes the push."""
    remote.fail("POST", "/commit/main", "drop", 10**6)
    folder = train(tiny(tmp_path, max_train_steps=1, push_to_hub=True, hub_model_id="alice/run"))
    told = capsys.readouterr().out
    assert "Could not push" in told and f"ddpm-push {folder} --repo_id alice/run" in told
    assert len(hub.load(folder)(1, num_inference_steps=2).images) == 1
    assert len(remote.repo("alice/run").history("main")) == 1  # the Hub's own
    remote.faults.clear()
    hub.push(folder, "alice/run")
    assert len(remote.repo("alice/run").history("main")) == 2


def test_checkpoints_of_an_earlier_version_are_checked_by_size(tmp_path):
    folder = train(tiny(tmp_path, checkpointing_steps=3))
    for step in (3, 6):
        checkpoint = folder / "checkpoints" / f"step-{step}"
        manifest = checkpoints.read_manifest(checkpoint)
        sizes = {name: (checkpoint / name).stat().st_size for name in manifest.pop("sha256")}
        (checkpoint / "state" / "manifest.json").write_text(json.dumps(manifest | {"sizes": sizes}))
    assert checkpoints.newest(folder).name == "step-6"
    (folder / "checkpoints" / "step-6" / "unet" / "config.json").write_text("{}")
    assert checkpoints.newest(folder).name == "step-3"


def test_a_run_begins_by_saying_what_it_trains_on(tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(ASSETS / "imagefolder", photos)
    (photos / "Bag" / "broken.png").write_bytes(b"no picture")
    options = {"dataset": str(photos), "max_train_steps": 1, "num_validation_images": 0}
    with pytest.raises(ValueError, match=r"broken.png"):
        train(tiny(tmp_path, **options))
    capsys.readouterr()
    train(tiny(tmp_path, **options, skip_undecodable=True))
    told = capsys.readouterr().out
    usable = len(list(photos.rglob("*.png"))) - 1
    number = usable - 1  # every tenth is held out
    assert (
        usable == 12 and f"{number} images" in told and "3 classes" in told and "Bag" in told and "broken.png" in told
    )
    assert f"1 steps of 8 images, {8 / number:.1f} epochs" in told and "parameters" in told


def test_a_model_of_text_trains_on_captions(tmp_path, monkeypatch, text_parts):
    """Embedded once, before the first step; what is saved draws from words."""
    photos = tmp_path / "photos"
    paths = sorted((ASSETS / "imagefolder").rglob("*.png"))
    photos.mkdir()
    for i, path in enumerate(paths):
        shutil.copy(path, photos / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": ["a cat", "a sleepy cat"]}) for i in range(len(paths))]
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    vectors = {"class_embed_type": "identity", "time_embedding_dim": 16}
    preset = replace(PRESETS["tiny"], unet=PRESETS["tiny"].unet | vectors, text_encoder="tiny/bert")
    monkeypatch.setitem(PRESETS, "text", preset)
    monkeypatch.setattr("ddpm_hf.hub.load_text_encoder", lambda name: text_parts)
    encoded, encode = [], DDPMImagePipeline.embed_prompts
    monkeypatch.setattr(
        DDPMImagePipeline, "embed_prompts", lambda pipe, texts: (encoded.append(list(texts)), encode(pipe, texts))[1]
    )
    trainer = make_trainer(
        tiny(tmp_path, preset="text", dataset=str(photos), max_train_steps=2, num_validation_images=1)
    )
    assert encoded == [[""], ["a cat", "a sleepy cat"]]
    batch = next(iter(trainer._loader()))
    assert batch["prompt_embeds"].shape == (8, 16) and batch["x_0"].dtype == torch.uint8
    trainer.run()
    pipe = hub.load(tmp_path / "run")
    images = pipe(prompt=["a cat", "a dog"], guidance_scale=2.0, num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, 1, 28, 28)
    monkeypatch.delattr("ddpm_hf.hub.load_text_encoder")  # the source has its own
    tuned = make_trainer(
        tiny(
            tmp_path,
            preset=None,
            init_from=str(tmp_path / "run"),
            output_dir=str(tmp_path / "tuned"),
            dataset=str(photos),
        )
    )
    assert tuned.pipeline.takes == ("prompt_embeds",)
