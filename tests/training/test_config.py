"""The options of a run, from the command line, YAML and presets."""

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from tiny import ROOT, TINY_UNET
from training_fixtures import tiny

from ddpm_hf import hub
from ddpm_hf.cli.train import parse_args
from ddpm_hf.training import config as config_module
from ddpm_hf.training.config import TrainConfig
from ddpm_hf.training.presets import PRESETS, find_preset
from ddpm_hf.training.trainer import train

sys.path.insert(0, str(ROOT / "scripts"))

pytestmark = pytest.mark.usefixtures("tiny_preset")


def test_configs_from_the_command_line_and_yaml(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    tiny(tmp_path, seed=5).save(path)
    read = parse_args([str(path), "--learning_rate", "0.5", "--mixed_precision", "no"])
    assert (read.seed, read.learning_rate, read.mixed_precision, read.preset) == (5, 0.5, "no", "tiny")
    quick = PRESETS["fashion-mnist-quick"].training
    assert parse_args(["--seed", "3"]).max_train_steps == quick["max_train_steps"]
    for arguments, message in [
        (["--preset", "nope"], "preset='nope': choose one of fashion-mnist-quick"),
        (["--train_batch_size", "0"], "train_batch_size=0"),
        (["--lr_scheduler", "cosin"], "invalid choice: 'cosin' (choose from 'cosine'"),
        (["--lr_warmup_steps", "20", "--max_train_steps", "10"], "at most max_train_steps=10"),
        (["--snr_gamma", "-5"], "snr_gamma=-5.0 must be at least 0"),
        (["--ema_sigma_rels", "0.1", "0.3"], "ema_sigma_rels=[0.1, 0.3] must be a list of numbers above 0"),
        (["missing.yaml"], "missing.yaml"),
        (["--prediction_type", "score"], "invalid choice: 'score' (choose from 'epsilon', 'sample'"),
        (
            ["--prediction_type", "epsilon", "--rescale_betas_zero_snr"],
            "choose prediction_type sample or v_prediction",
        ),
    ]:
        with pytest.raises(SystemExit):
            parse_args(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train_batch_size: 16.5", "train_batch_size=16.5 must be a whole number"),
        ("seed: yes", "seed=True must be a whole number"),
        ("learning_rate: [1]", "learning_rate=[1] must be a number"),
        ("resume: 2", "resume=2 must be true or false"),
        ("ema_sigma_rels: 0.1", "ema_sigma_rels=0.1 must be a list"),
    ],
)
def test_yaml_of_another_type_is_refused(tmp_path, capsys, line, message):
    (tmp_path / "run.yaml").write_text(line)
    with pytest.raises(SystemExit):
        parse_args([str(tmp_path / "run.yaml")])
    assert message in capsys.readouterr().err


def test_warm_up_and_average_follow_the_length_of_the_run():
    """RECIPE: of 6 steps 2 are warm-up, and the average spans 1 / (1 - 0.9) = 10."""
    assert (TrainConfig("tiny").lr_warmup_steps, TrainConfig("tiny").ema_decay) == (2, 0.9)
    longer = TrainConfig("tiny", max_train_steps=60)
    assert longer.lr_warmup_steps == 20 and longer.ema_decay == pytest.approx(0.99)
    assert TrainConfig("tiny", max_train_steps=60, ema_decay=0.5, lr_warmup_steps=0).ema_decay == 0.5


def test_the_default_objective_named_is_the_same_run(tmp_path):
    for preset, name in (("tiny", "simple"), ("fashion-mnist-nll", "hybrid")):
        TrainConfig(preset).save(tmp_path / "run.yaml")
        assert TrainConfig(preset, objective=name).differences(tmp_path / "run.yaml") == []
    assert TrainConfig(preset, objective="simple").differences(tmp_path / "run.yaml") == ["objective"]


@pytest.mark.parametrize("line", ["preset: of an earlier version", "seed: -1"])
def test_a_run_whose_options_are_no_more_says_which(tmp_path, line):
    (tmp_path / "run.yaml").write_text(line)
    with pytest.raises(ValueError, match=f"run.yaml is no config of this version: {line.split(':')[0]}="):
        TrainConfig("tiny").differences(tmp_path / "run.yaml")


def test_the_configs_of_a_stock_model_are_a_preset(tmp_path, monkeypatch):
    model, options = tmp_path / "model", TINY_UNET | {"sample_size": 28, "num_class_embeds": 3}
    UNet2DModel(**options).save_config(model / "unet")
    DDIMScheduler(num_train_timesteps=20, prediction_type="v_prediction").save_config(model / "scheduler")
    config = tiny(tmp_path, preset=str(model), max_train_steps=1, variance_type="learned_range")
    assert (config.learning_rate, config.train_batch_size) == (1e-4, 16)
    pipe = hub.load(train(config))
    theirs, ours = (json.loads((folder / "unet/config.json").read_text()) for folder in (model, tmp_path / "run"))
    changed = {name for name in theirs if ours[name] != theirs[name]}
    assert changed == {"_class_name", "out_channels", "num_class_embeds"}
    assert (ours["out_channels"], ours["num_class_embeds"]) == (2, 11)  # a learned variance; the data has 10 classes
    assert (len(pipe.scheduler), pipe.scheduler.config.prediction_type) == (20, "v_prediction")
    monkeypatch.chdir(tmp_path / "run")  # the command on the card, in a clone of the model's repo
    again = parse_args(["training_config.yaml"])
    assert again.preset == "." and again.choose(find_preset(".")).unet["out_channels"] == 2
    assert (
        "accelerate launch --num_processes 1 ../ddpm_hf/scripts/train.py training_config.yaml"
        in Path("README.md").read_text()
    )


def test_a_preset_may_have_all_in_its_root(tmp_path):
    """The layout of google/ddpm-*."""
    UNet2DModel(**TINY_UNET).save_config(tmp_path)
    DDIMScheduler(num_train_timesteps=20).save_config(tmp_path)
    chosen = TrainConfig(str(tmp_path)).choose(find_preset(str(tmp_path)))
    unet, scheduler = chosen.unet, chosen.scheduler
    assert unet["sample_size"] == TINY_UNET["sample_size"] and scheduler["num_train_timesteps"] == 20


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "one of its configs is no JSON object"),
        ("[]", "one of its configs is no JSON object"),
        ("{}", "must have the pixels of a side as its sample_size"),
        ('{"sample_size": null}', "must have the pixels of a side as its sample_size"),
    ],
)
def test_the_configs_of_no_unet_are_refused(tmp_path, capsys, config, message):
    DDIMScheduler().save_config(tmp_path / "scheduler")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(config)
    with pytest.raises(SystemExit):
        parse_args(["--preset", str(tmp_path)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"preset='{tmp_path}'" in error and message in error


@pytest.mark.parametrize("name", list(config_module.PRESETS))
def test_presets_build_and_end_in_noise(name):
    from ddpm_hf import DDPMNoiseScheduler, DDPMUNet2DModel

    preset = PRESETS[name]
    with torch.device("meta"):
        unet = DDPMUNet2DModel(**preset.unet)
    assert preset.unet["sample_size"] % 2 ** (len(unet.down_blocks) - 1) == 0
    learned = preset.scheduler.get("variance_type", "").startswith("learned")
    assert unet.config.out_channels == unet.config.in_channels * (2 if learned else 1)
    assert DDPMNoiseScheduler(**preset.scheduler).alphas_cumprod[-1] < 1e-3
