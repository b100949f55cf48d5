"""Averages of other lengths than the saved one: snapshots of a run, and scripts/average.py."""

import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny import ROOT
from training_fixtures import tiny

from ddpm_hf import hub
from ddpm_hf.cli.train import parse_args
from ddpm_hf.training.trainer import make_trainer, train

sys.path.insert(0, str(ROOT / "scripts"))
import average

pytestmark = pytest.mark.usefixtures("tiny_preset")


def lost_snapshot(run: Path, step: int) -> Path:
    """A snapshot of a step that no checkpoint has come to."""
    path = run / "averages" / f"step-{step}-sigma_rel-0.1.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({}, path, metadata={"step": str(step), "sigma_rel": "0.1"})
    return path


def test_snapshots_of_lost_steps_go(tmp_path):
    """Of a run that was killed before its first checkpoint, and of one that goes on from before them."""
    options = {"resume": True, "ema_sigma_rels": [0.1]}
    for steps in (2, 3):
        stale = lost_snapshot(tmp_path / "run", step=4)
        tiny(tmp_path, **options).save(tmp_path / "run" / "run.yaml")
        train(tiny(tmp_path, **options, max_train_steps=steps))
        assert sorted(path.name[5] for path in stale.parent.iterdir()) == ["1", "2", "3"][:steps]


@pytest.mark.parametrize("torch_compile", [False, True])
def test_averages_of_other_lengths_become_models(tmp_path, monkeypatch, capsys, torch_compile):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    options = {"ema_sigma_rels": [0.05, 0.1], "mixed_precision": "no", "torch_compile": torch_compile}
    train(tiny(tmp_path, **options, max_train_steps=3))
    folder = train(tiny(tmp_path, **options, resume=True))
    assert len(list((folder / "averages").iterdir())) == 2 * 6
    command = [str(folder), "--sigma_rel", "0.1", "--output_dir"]
    assert average.main([*command, str(tmp_path / "other")]) == 0
    found, whole = hub.load(tmp_path / "other").unet.state_dict(), hub.load(folder).unet.state_dict()
    snapshot = load_file(folder / "averages" / "step-6-sigma_rel-0.1.safetensors")
    assert found.keys() == snapshot.keys()
    assert all(torch.allclose(found[name], snapshot[name].float(), atol=1e-6) for name in found)
    assert not torch.equal(found["conv_out.weight"], whole["conv_out.weight"])
    assert "of width 0.1" in (tmp_path / "other" / "README.md").read_text()
    again = parse_args([str(tmp_path / "other" / "training_config.yaml")])  # the command on the card
    assert again.ema_sigma_rels == [0.05, 0.1]
    for name in ("resume", "push_to_hub", "hub_model_id"):
        assert name not in (tmp_path / "other" / "README.md").read_text()
    assert "validation_loss" not in (tmp_path / "other" / "train_results.json").read_text()  # of other weights
    assert average.main([*command, str(tmp_path / "earlier"), "--step", "3"]) == 0
    card = (tmp_path / "earlier" / "README.md").read_text()
    assert (
        "in\n6 steps" in card and "of width 0.1 up to step 3\n" in card
    )  # what the run took, and where the average ends
    with pytest.raises(SystemExit):
        average.main([*command, f"{folder}/"])
    killed = tmp_path / "killed"  # before its first checkpoint
    shutil.copytree(folder / "averages", killed / "averages")
    assert average.main([str(killed), *command[1:], str(tmp_path / "none")]) == 2
    assert "neither a saved model nor a checkpoint" in capsys.readouterr().err
    for path in (killed / "averages").iterdir():
        path.write_bytes(b"damaged")
    assert average.main([str(killed), *command[1:], str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert hub.load(folder).unet.state_dict().keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in hub.load(folder).unet.state_dict().items())


def test_snapshots_of_a_compiled_model_under_ddp_have_a_saved_models_names(tmp_path, monkeypatch):
    """Accelerate does not see a compiled module inside of DDP, and leaves it wrapped."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(Accelerator, "unwrap_model", lambda self, model, **options: model)
    trainer = make_trainer(tiny(tmp_path, ema_sigma_rels=[0.1], torch_compile=True))
    assert trainer.averages.parameters.keys() == dict(trainer.average.unet.named_parameters()).keys()
