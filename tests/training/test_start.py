"""What a run starts from: the weights that are taken over, and what cannot be trained."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from tiny import ASSETS, TINY_UNET
from training_fixtures import tiny

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel, hub
from ddpm_hf.training import Preset, TrainConfig, start
from ddpm_hf.training.config import parse_args

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


def test_a_preset_that_starts_from_trained_weights_keeps_its_data():
    config = TrainConfig("cifar10", init_from="model")
    assert (config.dataset, config.random_flip, config.max_train_steps) == ("uoft-cs/cifar10", True, 2000)


def test_the_options_of_an_objective_are_refused_elsewhere(capsys):
    for arguments, message in [
        ("--distill_guidance 1.3", "distill_guidance=1.3 belongs to objective='consistency'"),
        ("--objective consistency --init_from m --distill_guidance -1", "distill_guidance=-1.0 must be at least 0"),
        ("--objective consistency --init_from m --snr_gamma 5", "snr_gamma=5.0 weighs the losses simple and hybrid"),
    ]:
        with pytest.raises(SystemExit):
            parse_args(arguments.split())
        assert message in capsys.readouterr().err


def test_streamed_data_have_no_held_out_loss_and_say_so(tmp_path, caplog):
    from ddpm_hf.training.trainer import make_trainer

    options = {"dataset": str(ASSETS / "imagefolder"), "streaming": True}
    assert make_trainer(tiny(tmp_path, **options)).validation_data is None
    assert "No held-out loss: the data set is streamed" in caplog.text
