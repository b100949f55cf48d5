"""Nothing lost, nothing different: a killed run goes on bit for bit, and a run is the same on any number of ranks."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from filelock import FileLock
from training_runs import differences, fill_disk, kill, run, terminate

from ddpm_hf.training.launch import ignore_foreign_signals

ROOT = Path(__file__).parents[2]
# 2 forward passes of 48 images in each of 6 steps, of 256 images: epochs end within steps 3 and 6. Saved are steps 2, 4 and 6.
OPTIONS = {1: {"train_batch_size": 48}, 2: {"train_batch_size": 24}}  # by the number of ranks
OPTIONS = {ranks: options | {"gradient_accumulation_steps": 2} for ranks, options in OPTIONS.items()}
MOMENTS = {
    "between the passes of a step": ("ddpm_hf.training.trainer:Trainer._condition", 8),
    "before the optimizer": ("torch.optim:AdamW.step", 5),
    "in the first save": ("accelerate.accelerator:save_accelerator_state", 1),
    "in a save, before the optimizer's state": ("accelerate.accelerator:save_accelerator_state", 2),
    "in a save, before the moving average": ("accelerate.accelerator:save_custom_state", 4),
    "in a save, before it stands": ("pathlib:Path.rename", 2),
    "in a save, before the old one goes": ("ddpm_hf.training.checkpoints:remove_old", 4),
    "in the saved model": ("ddpm_hf.training.trainer:Trainer._finish", 1),
}
CASES = [(1, moment) for moment in MOMENTS]
CASES += [(2, moment) for moment in ("between the passes of a step", "in a save, before the optimizer's state")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """num_ranks -> the folder of a run that nothing happened to, in bf16, with dropout and flips."""

    @cache
    def folder(num_ranks: int) -> Path:
        path = tmp_path_factory.mktemp("whole")
        assert run(path, num_ranks, **OPTIONS[num_ranks]) == [0] * num_ranks
        return path

    return folder


@pytest.mark.parametrize(("num_ranks", "moment"), CASES)
def test_killed_at_any_moment(whole, tmp_path, num_ranks, moment, record_property):
    options = OPTIONS[num_ranks]
    assert run(tmp_path, num_ranks, interrupt=(kill, *MOMENTS[moment]), **options)[-1] == -signal.SIGKILL
    assert run(tmp_path, num_ranks, resume=True, **options) == [0] * num_ranks
    found = differences(whole(num_ranks), tmp_path)
    record_property("differences", found)
    assert set(found.values()) == {0.0}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-4", "step-6"]
    assert len(list((tmp_path / "averages").iterdir())) == 6


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_sigterm_saves_and_leaves(whole, tmp_path, num_ranks):
    options = OPTIONS[num_ranks]
    moment = (terminate, "ddpm_hf.training.trainer:Trainer._condition", 5)
    assert run(tmp_path, num_ranks, interrupt=moment, **options) == [0] * num_ranks
    last_line = (tmp_path / "out-0.txt").read_text().strip().splitlines()[-1]
    assert last_line == "Stopped by SIGTERM at step 3, saved. --resume goes on."
    assert run(tmp_path, num_ranks, resume=True, **options) == [0] * num_ranks
    assert set(differences(whole(num_ranks), tmp_path).values()) == {0.0}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_sigterm_in_the_last_step_saves_and_leaves(tmp_path, num_ranks):
    """To one rank: all of them leave the last phase to the resumed run."""
    moment = (terminate, "ddpm_hf.training.trainer:Trainer._condition", 12)
    assert run(tmp_path, num_ranks, interrupt=moment, **OPTIONS[num_ranks]) == [0] * num_ranks
    assert "Stopped by SIGTERM at step 6, saved." in (tmp_path / "out-0.txt").read_text()
    assert not (tmp_path / "model_index.json").exists()


def test_another_accumulation_goes_on_at_the_next_step(tmp_path, record_property):
    """In float32, to rounding: of Adam's steps of 1e-2, in which small gradients weigh as much as large ones."""
    options = {"mixed_precision": "no", "dropout": 0.0}
    assert run(tmp_path / "whole", **OPTIONS[1], **options) == [0]
    moment = (
        terminate,
        "ddpm_hf.training.trainer:Trainer._condition",
        5,
    )  # in step 3: an odd number of steps, of 2 passes
    assert run(tmp_path / "other", interrupt=moment, **OPTIONS[1], **options) == [0]
    other = {"train_batch_size": 24, "gradient_accumulation_steps": 4}
    assert run(tmp_path / "other", resume=True, **other, **options) == [0]
    found = differences(tmp_path / "whole", tmp_path / "other")
    record_property("differences", found)
    assert found["lr"] == 0 and found["loss"] < 1e-5 and found["grad_norm"] < 1e-5, found


def test_the_same_run_on_any_topology(tmp_path, record_property):
    """64 images a step: on 1 rank, on 2, and in 4 passes."""
    topologies = {"1 x 64": (1, 64, 1), "2 x 32": (2, 32, 1), "1 x 16 x 4": (1, 16, 4), "2 x 16 x 2": (2, 16, 2)}
    draws = {}
    for name, (num_ranks, batch_size, passes) in topologies.items():
        options = {"train_batch_size": batch_size, "gradient_accumulation_steps": passes, "mixed_precision": "no"}
        assert run(tmp_path / name, num_ranks, dropout=0.0, **options) == [0] * num_ranks
        ranks = [torch.load(tmp_path / name / f"seen-{rank}.pt") for rank in range(num_ranks)]
        # Rank by rank within a pass -> by position in the run.
        draws[name] = [
            torch.stack([x.unflatten(0, (-1, batch_size)) for x in per_rank], 1).flatten(0, 2)
            for per_rank in zip(*ranks)
        ]
    for name in topologies:
        assert all(torch.equal(a, b) for a, b in zip(draws["1 x 64"], draws[name]))  # x_0, t, noise, labels
        found = differences(tmp_path / "1 x 64", tmp_path / name)
        record_property(name, found)
        assert found["lr"] == 0 and found["loss"] < 1e-5 and found["grad_norm"] < 1e-5, found


def fsdp2() -> dict[str, str]:
    """What `accelerate launch --config_file accelerate_configs/fsdp2.yaml` says to its ranks about FSDP."""
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(ROOT / "accelerate_configs/fsdp2.yaml"), "train.py"]
    )
    environ = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {name: value for name, value in environ.items() if "FSDP" in name}


def test_fsdp2_is_the_same_run_as_ddp_and_resumes(tmp_path, record_property):
    options = {"train_batch_size": 24, "mixed_precision": "no", "dropout": 0.0}
    assert run(tmp_path / "ddp", 2, **options) == [0, 0]
    assert run(tmp_path / "fsdp2", 2, launcher=fsdp2(), **options) == [0, 0]
    found = differences(tmp_path / "ddp", tmp_path / "fsdp2")
    record_property("FSDP2 and DDP", found)
    assert found["lr"] == 0 and found["loss"] < 1e-5 and found["grad_norm"] < 1e-4, found
    moment = (kill, *MOMENTS["in a save, before the moving average"])
    assert run(tmp_path / "killed", 2, interrupt=moment, launcher=fsdp2(), **options)[-1] == -signal.SIGKILL
    assert run(tmp_path / "killed", 2, launcher=fsdp2(), resume=True, **options) == [0, 0]
    assert set(differences(tmp_path / "fsdp2", tmp_path / "killed").values()) == {0.0}


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    moment = (fill_disk, "ddpm_hf.training.trainer:Trainer.save_checkpoint", 2)
    assert run(tmp_path, interrupt=moment) == [1]
    out = (tmp_path / "out-0.txt").read_text()
    assert "OSError: The checkpoint of step 4 could not be written" in out and "step-2 is kept" in out
    assert run(tmp_path, resume=True) == [0]
    assert "Resumed from" in (tmp_path / "out-0.txt").read_text()


LAUNCHED = """
import os, sys
sys.path.insert(0, {tests!r})
from training_runs import Path, train_rank
train_rank(Path({folder!r}), {{}}, int(os.environ["RANK"]), None, 0.1, {options!r})
"""


def test_cpu_config_starts_two_ranks(tmp_path):
    """Through `accelerate launch` itself: the same bits as the ranks that these tests start."""
    options = {"train_batch_size": 8}
    assert run(tmp_path / "here", 2, **options) == [0, 0]
    (tmp_path / "launched").mkdir()
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "launched"), options=options))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(ROOT / "accelerate_configs" / "cpu_2_ranks.yaml"), str(script)]
    subprocess.run(launch, check=True, cwd=ROOT, timeout=120)
    assert set(differences(tmp_path / "here", tmp_path / "launched").values()) == {0.0}


def test_sigterm_to_all_processes_of_a_run_saves_and_leaves(tmp_path):
    """As a cluster sends it: to the workers that load as well, which must not end before their rank."""
    folder, script = tmp_path / "run", tmp_path / "script.py"
    folder.mkdir()
    options = {"dataloader_num_workers": 2, "max_train_steps": 10**6, "checkpointing_steps": 10**6}
    script.write_text(LAUNCHED.format(tests=str(ROOT / "tests"), folder=str(folder), options=options))
    process = subprocess.Popen(
        [sys.executable, script], env=os.environ | {"RANK": "0"}, cwd=ROOT, start_new_session=True
    )
    while not (folder / "log-0.jsonl").exists() and process.poll() is None:
        time.sleep(0.1)
    for _ in range(3):  # a launcher passes on what its processes got themselves
        os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0
    out = (folder / "out-0.txt").read_text()
    assert "Stopped by SIGTERM at step" in out and "Traceback" not in out
    assert list(folder.glob("checkpoints/step-*"))


def work(started) -> None:
    ignore_foreign_signals(0)
    started.set()
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="a signal's sender is not known here")
@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_workers_are_stopped_by_their_rank_alone(start):
    """Which must be able to: after an error Python waits for workers that it has sent a SIGTERM."""
    processes = multiprocessing.get_context(start)
    worker = processes.Process(target=work, args=(started := processes.Event(),))
    worker.start()
    assert started.wait(60)
    subprocess.run(["kill", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("name", "kind", "num_machines", "num_processes"),
    [
        ("single", DistributedType.NO, 1, 1),
        ("multi_gpu", DistributedType.MULTI_GPU, 1, 8),
        ("multi_node", DistributedType.MULTI_GPU, 2, 16),
        ("cpu_2_ranks", DistributedType.MULTI_GPU, 1, 2),
        ("fsdp2", DistributedType.FSDP, 1, 8),
    ],
)
def test_accelerate_reads_its_configs(name, kind, num_machines, num_processes):
    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines, config.num_processes) == (kind, num_machines, num_processes)


def test_ranks_agree_that_another_run_is_there(tmp_path):
    with FileLock(tmp_path / ".lock"):
        assert run(tmp_path, 2, max_train_steps=2)[-1] == 1
    assert "ValueError: output_dir=" in (tmp_path / "out-1.txt").read_text()


def test_ranks_agree_that_there_are_no_held_out_images(tmp_path):
    """Of fewer than ten images none is held out; the first rank finds it out while the others wait for it."""
    shutil.copytree(ROOT / "tests" / "assets" / "imagefolder" / "Bag", tmp_path / "photos")
    options = {
        "dataset": str(tmp_path / "photos"),
        "num_validation_images": 8,
        "max_train_steps": 2,
    }
    assert run(tmp_path, 2, train_batch_size=2, **options) == [0, 0]
    for rank in range(2):
        assert "No held-out loss: " in (tmp_path / f"out-{rank}.txt").read_text()
