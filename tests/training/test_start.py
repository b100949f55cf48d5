"""What a run starts from: the weights that are taken over, and what cannot be trained."""

import shutil

import pytest
import torch
import yaml
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, LCMScheduler, TCDScheduler
from tiny import ASSETS, TINY_UNET
from training_fixtures import tiny

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel, hub
from ddpm_hf.cli.train import parse_args
from ddpm_hf.data import load_image_dataset
from ddpm_hf.training import Preset, TrainConfig, start
from ddpm_hf.training.trainer import make_trainer, train

pytestmark = pytest.mark.usefixtures("tiny_preset")
DIT = dict(sample_size=8, patch_size=4, in_channels=1, out_channels=1, num_layers=2, num_attention_heads=1)
DIT |= dict(attention_head_dim=8, num_embeds_ada_norm=3, norm_num_groups=1)


def unet(**options) -> DDPMImagePipeline:
    return DDPMImagePipeline(DDPMUNet2DModel(**TINY_UNET | options), DDPMNoiseScheduler())


def test_other_channels_are_made_anew_and_named(caplog):
    grey, colour = unet(), unet(in_channels=3, out_channels=3)
    start.take_over(colour, grey, "grey")
    assert "made anew: conv_in.weight, conv_out.bias, conv_out.weight; left out: none." in caplog.text
    ours, theirs = colour.unet.state_dict(), grey.unet.state_dict()
    for name in ours.keys() - {"conv_in.weight", "conv_out.bias", "conv_out.weight"}:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_class_table_that_the_data_do_not_need_is_named(caplog):
    start.take_over(unet(), unet(num_class_embeds=3), "labelled")
    assert "made anew: none; left out: class_embedding.weight." in caplog.text


def test_the_class_tables_of_any_network_are_of_its_classes(caplog):
    names = [{0: "a", 1: "b", 2: "c"}, {0: "x", 1: "y", 2: "z"}]
    ours, same, other = (
        DDPMImagePipeline(DiTTransformer2DModel(**DIT), DDPMNoiseScheduler(), names[i]) for i in (0, 0, 1)
    )
    start.take_over(ours, same, "same")
    assert "made anew: none" in caplog.text
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    start.take_over(ours, other, "other")
    assert f"made anew: {table}" in caplog.text
    assert torch.equal(ours.unet.state_dict()[table], same.unet.state_dict()[table])


@pytest.mark.parametrize("classes", [None, ["a", "b", "c", "d"]])
def test_a_class_table_of_another_size_than_the_data_is_refused(tmp_path, classes):
    preset = Preset(DIT, {}, {}, class_conditional=True, network=DiTTransformer2DModel)
    message = f"{0 if classes is None else 4} classes: this network's table has 4 labels"
    with pytest.raises(ValueError, match=message):
        start.make_pipeline(start.Start(preset, None), classes, tiny(tmp_path))


def test_a_start_that_cannot_be_trained_is_refused(tmp_path):
    hub.save(unet(sample_size=(8, 8)), tmp_path / "model")
    with pytest.raises(ValueError, match="must be the pixels of a side"):
        start.find_start(tiny(tmp_path, preset=None, init_from=str(tmp_path / "model")))


def saved(folder, **parts):
    """A tiny model of ten classes that says what it was trained on."""
    classes = dict(enumerate(map(str, range(10))))
    pipeline = unet(sample_size=28, num_class_embeds=11)
    parts = {**pipeline.components, "id2label": classes} | parts
    hub.save(DDPMImagePipeline(**parts), folder, train_config={"dataset": "photos"})
    (folder / "run.yaml").write_text(yaml.safe_dump({"dataset": str(ASSETS / "idx"), "label_column": "label"}))
    return folder


def fine_tuning(tmp_path, **options) -> TrainConfig:
    given = {"preset": None, "init_from": str(tmp_path / "model"), "max_train_steps": 2, "train_batch_size": 4}
    return tiny(tmp_path, **given | {"num_validation_images": 0} | options)


def test_a_run_that_names_no_data_takes_those_of_the_model_it_starts_from(tmp_path):
    """And goes on by itself: a resumed run has in its folder what it needs of that model."""
    saved(tmp_path / "model")
    folder = train(fine_tuning(tmp_path, dataset=None))
    asked = yaml.safe_load((folder / "run.yaml").read_text())
    assert (asked["dataset"], asked["label_column"]) == (str(ASSETS / "idx"), "label")
    shutil.rmtree(tmp_path / "model")
    assert make_trainer(fine_tuning(tmp_path, dataset=None, max_train_steps=3, resume=True)).step == 2


@pytest.mark.parametrize("way", ["init_from", "preset"])
def test_a_model_that_does_not_tell_its_data_needs_them_named(tmp_path, way):
    hub.save(unet(sample_size=28), tmp_path / "model")
    options = {"preset": None, "dataset": None, way: str(tmp_path / "model")}
    with pytest.raises(ValueError, match="model' does not tell what it was trained on; name the data set"):
        make_trainer(tiny(tmp_path, **options))


def test_a_student_of_few_steps_is_trained_on_by_its_teacher(tmp_path):
    """A run that was stopped is the same run, its second network included; the saved student takes four steps of DDPM."""
    scheduler = DDPMNoiseScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    classes = dict(enumerate(load_image_dataset(str(ASSETS / "idx"), num_channels=1, image_size=28).class_names))
    saved(tmp_path / "teacher", scheduler=scheduler, id2label=classes)
    saved(
        tmp_path / "model",
        scheduler=LCMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
        id2label=classes,
    )
    options = {"objective": "moment_matching", "teacher": str(tmp_path / "teacher"), "distill_guidance": 1.3}
    options |= {
        "gradient_checkpointing": True,
        "learning_rate": 1e-2,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 1,
        "ema_decay": 0.5,
    }  # whatever the length of the leg
    weights = []
    for name, legs in (("whole", [4]), ("halves", [2, 4])):
        for steps in legs:
            config = fine_tuning(tmp_path, output_dir=str(tmp_path / name), max_train_steps=steps, **options)
            config.resume = steps != legs[0]
            trainer = make_trainer(config)
            trainer.run()
        weights.append(
            {**trainer.average.unet.state_dict(), "auxiliary": next(trainer.objective.auxiliary.parameters())}
        )
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    first = next(hub.load(tmp_path / "teacher").unet.parameters())
    assert not torch.equal(weights[0]["auxiliary"], first)  # it learns
    assert trainer.objective.auxiliary.is_gradient_checkpointing
    saved(tmp_path / "teacher", scheduler=scheduler, id2label=classes)
    with pytest.raises(ValueError, match=r"teacher=.*teacher' does not have the weights that .*step-4 was taught by"):
        make_trainer(config)
    student = hub.load(tmp_path / "whole")
    assert isinstance(student.scheduler, DDPMNoiseScheduler)
    assert student.sampling == {"num_inference_steps": 4, "guidance_scale": 1.0}


@pytest.mark.parametrize(
    "scheduler", [LCMScheduler(), TCDScheduler(), FlowMatchEulerDiscreteScheduler(), DDPMNoiseScheduler()]
)
def test_a_student_or_another_process_is_no_start(tmp_path, scheduler):
    few = {"num_inference_steps": 4, "guidance_scale": 1.0}
    saved(tmp_path / "model", scheduler=scheduler, sampling=few)
    kind = type(scheduler).__name__
    with pytest.raises(ValueError, match=rf"model' samples in few steps or not by DDPM \({kind}\)"):
        start.find_start(fine_tuning(tmp_path))


def test_the_teacher_is_the_saved_model_and_not_what_a_run_makes_of_it(tmp_path):
    """A run with another prediction or other classes has weights that mean something else, or nothing yet."""
    classes = dict(enumerate(load_image_dataset(str(ASSETS / "idx"), num_channels=1, image_size=28).class_names))
    saved(tmp_path / "model", scheduler=DDPMNoiseScheduler(prediction_type="sample"), id2label=classes)
    options = {"objective": "consistency", "distill_guidance": 1.3}
    trainer = make_trainer(fine_tuning(tmp_path, prediction_type="v_prediction", **options))
    assert trainer.objective.teacher.model.scheduler.config.prediction_type == "sample"
    saved(tmp_path / "model", id2label=dict(enumerate("abcdefghij")))
    with pytest.raises(ValueError, match="model' has other classes than the student"):
        make_trainer(fine_tuning(tmp_path, **options))


def test_channels_without_a_variance_are_refused_before_the_first_step(tmp_path):
    preset = Preset(TINY_UNET | {"out_channels": 2 * TINY_UNET["out_channels"]}, {}, {})
    with pytest.raises(ValueError, match=r"does not fit sample .* with variance_type='fixed_small'"):
        start.make_pipeline(start.Start(preset, None), None, tiny(tmp_path))


@pytest.mark.parametrize(
    ("conditional", "classes", "told"),
    [
        (False, ["a", "b"], "has 2 classes: this network does not take them"),
        (True, None, "has no classes: the network is made without them"),
        (True, ["a", "b"], ""),
    ],
)
def test_classes_that_are_not_used_or_not_there_are_named(tmp_path, caplog, conditional, classes, told):
    preset = Preset(TINY_UNET, {}, {}, class_conditional=conditional)
    start.make_pipeline(start.Start(preset, None), classes, tiny(tmp_path))
    assert told in caplog.text and ("classes" in caplog.text) == bool(told)


@pytest.mark.parametrize(
    ("classes", "options", "saved_scale", "told"),
    [
        (["a"], {}, 3.0, ""),
        (["a"], {"guidance_scale": 2.0}, 2.0, ""),
        (None, {"guidance_scale": 2.0}, None, "guidance_scale=2.0 is not used: the network has no condition"),
        (["a"], {"guidance_scale": 2.0, "objective": "consistency", "init_from": "m"}, 2.0, "not used: a student"),
    ],
)
def test_guidance_is_the_one_that_is_asked_for_or_the_presets(tmp_path, caplog, classes, options, saved_scale, told):
    preset = Preset(TINY_UNET, {}, {}, class_conditional=True)
    preset.sampling.update(guidance_scale=3.0, guidance_interval=[100, 900])
    pipeline = start.make_pipeline(start.Start(preset, None), classes, tiny(tmp_path, **options))
    assert pipeline.sampling.get("guidance_scale") == saved_scale
    assert ("guidance_interval" in pipeline.sampling) == (saved_scale is not None)
    assert told in caplog.text and ("guidance_scale" in caplog.text) == bool(told)


def test_another_teacher_is_another_run(tmp_path):
    saved(tmp_path / "model")
    options = {"objective": "consistency", "distill_guidance": 1.3, "mixed_precision": "bf16"}
    trainer, dtypes = make_trainer(fine_tuning(tmp_path, **options)), set()
    layer = trainer.objective.teacher.network.mid_block.resnets[0].conv1
    layer.register_forward_hook(lambda _, inputs, output: dtypes.add(output.dtype))
    trainer.run()
    assert dtypes == {torch.bfloat16}  # the run's autocast
    again = fine_tuning(tmp_path, **options, resume=True)
    assert make_trainer(again).step == 2
    saved(tmp_path / "model")
    with pytest.raises(ValueError, match=r"init_from=.*model' does not have the weights that .*step-2 was taught by"):
        make_trainer(again)


def test_a_preset_that_starts_from_trained_weights_keeps_its_data():
    config = TrainConfig("cifar10", init_from="model")
    assert (config.dataset, config.random_flip, config.max_train_steps) == ("uoft-cs/cifar10", True, 2000)


def test_the_options_of_an_objective_are_refused_elsewhere(capsys):
    for arguments, message in [
        ("--distill_guidance 1.3", "distill_guidance=1.3 belongs to objective='consistency' and 'moment_matching'"),
        ("--teacher m", "teacher='m' belongs to objective='consistency' and 'moment_matching'"),
        ("--objective moment_matching", "objective='moment_matching' starts from a trained model"),
        ("--objective consistency --init_from m --distill_guidance -1", "distill_guidance=-1.0 must be at least 0"),
        ("--objective consistency --init_from m --snr_gamma 5", "snr_gamma=5.0 weighs the losses simple and hybrid"),
    ]:
        with pytest.raises(SystemExit):
            parse_args(arguments.split())
        assert message in capsys.readouterr().err


def test_streamed_data_have_no_held_out_loss_and_say_so(tmp_path, caplog):
    options = {"dataset": str(ASSETS / "imagefolder"), "streaming": True}
    assert make_trainer(tiny(tmp_path, **options)).validation_data is None
    assert "No held-out loss: the data set is streamed" in caplog.text
