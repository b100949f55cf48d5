"""Training runs in processes of their own, which can be killed: one for each rank, forked from a server that has the imports done."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from tiny import ASSETS, TINY_UNET

SCHEDULER = {"num_train_timesteps": 20, "beta_schedule": "sigmoid"}
RECIPE = {"train_batch_size": 48, "learning_rate": 1e-2, "lr_warmup_steps": 2, "max_train_steps": 6, "ema_decay": 0.9}
OPTIONS = {"preset": "tiny", "dataset": str(ASSETS / "idx"), "report_to": "none", "num_validation_images": 0}
OPTIONS |= {
    "mixed_precision": "bf16",
    "ema_sigma_rels": [0.1],
    "random_flip": True,
    "validation_steps": 0,
    "checkpointing_steps": 2,
    "logging_steps": 1,
}

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["ddpm_hf.training.trainer"])


def run(
    folder: Path, num_ranks: int = 1, interrupt=None, dropout: float = 0.1, launcher: dict | None = None, **options
) -> list[int]:
    """Train in `folder`; returns the exit codes of the ranks (minus the signal's number for a killed one).

    interrupt: (action, "module:function", n): what happens to the last rank as it calls the function for the n-th time.
    launcher: what `accelerate launch` leaves in the environment of each rank; with it one rank is a process group, too.
    Every rank leaves what it logged in log-RANK.jsonl, what it printed in out-RANK.txt and its losses' inputs in seen-RANK.pt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}  # as torchrun does
    launched |= launcher or {}
    ranks = []
    for rank in range(num_ranks):
        environ = launched | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(num_ranks)}
        mine = interrupt if rank == num_ranks - 1 else None
        arguments = (folder, environ if num_ranks > 1 or launcher else {}, rank, mine, dropout, options)
        ranks.append(processes.Process(target=train_rank, args=arguments))
        ranks[-1].start()
    ranks[-1].join(120)
    for process in ranks:
        if ranks[-1].exitcode:  # torchrun ends the ranks that wait for a dead one
            process.kill()
        process.join(120)
    return [process.exitcode for process in ranks]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fill_disk() -> None:
    """No file may grow beyond 20 KB from here on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def train_rank(folder: Path, environ: dict, rank: int, interrupt, dropout: float, options: dict) -> None:
    os.environ.update(environ)
    from accelerate import Accelerator, PartialState

    from ddpm_hf.training import PRESETS, Preset, TrainConfig, trainer

    out = open(folder / f"out-{rank}.txt", "a")  # noqa: SIM115
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    PRESETS["tiny"] = Preset(TINY_UNET | {"dropout": dropout}, SCHEDULER, RECIPE, class_conditional=True)
    if interrupt:
        _interrupt(*interrupt)
    if (
        "ACCELERATE_USE_FSDP" in environ
    ):  # Accelerate shares a model out among GPUs only; FSDP2 itself works on CPUs, too
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    seen, make_objective = [], trainer.make_objective

    def make_seeing_objective(*options):
        objective = make_objective(*options)

        def seeing(denoise, scheduler, x_0, t, noise, condition):
            seen.append((x_0, t, noise, *condition.values()))
            return objective(denoise, scheduler, x_0, t, noise, condition)

        return seeing

    def log(accelerator, values, step):
        with open(folder / f"log-{rank}.jsonl", "a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")

    trainer.make_objective, Accelerator.log = make_seeing_objective, log
    os.sched_getaffinity = lambda _: {0}  # the threads of a tiny net wait for each other most of the time
    try:
        trainer.train(TrainConfig(output_dir=str(folder), **OPTIONS | options))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    torch.save([torch.cat(tensors) for tensors in zip(*seen)], folder / f"seen-{rank}.pt")


def _interrupt(action, target: str, n: int) -> None:
    """Patch the function so that `action` comes before its n-th call."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner, calls = import_module(module), []
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == n:
            action()
        return original(*arguments, **options)

    setattr(owner, name, interrupted)


def logged(folder: Path) -> dict[int, tuple[float, float, float]]:
    """Step -> loss, gradient norm, learning rate; of a step that was taken twice, the second time."""
    lines = [json.loads(line) for line in (folder / "log-0.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"], line["lr"]) for line in lines if "loss" in line}


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: the weights, the optimizer's state, the moving averages, the schedule.

    Where ranks share out the first two, the averages and the saved model stand for them.
    """
    (last,) = folder.glob("checkpoints/step-6/state")
    tensors: dict[str, torch.Tensor] = {}

    def collect(name, value):
        if isinstance(value, (dict, list, tuple)):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{name}.{key}", item)
        elif isinstance(value, (torch.Tensor, int, float)):
            tensors[name] = torch.as_tensor(value, dtype=torch.float64)

    for path in (*last.glob("*.safetensors"), *last.parent.glob("unet/*.safetensors")):
        collect(path.name, load_file(path))
    for path in (*last.glob("optimizer.bin"), *last.glob("custom_checkpoint_*.pkl")):
        collect(path.name, torch.load(path, weights_only=True))
    return tensors


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference between two runs: in the tensors of their last checkpoints, and in what they logged."""
    a, b, log_a, log_b = state(one), state(other), logged(one), logged(other)
    common = a.keys() & b.keys()
    assert len(common) > 100 and log_a.keys() == log_b.keys() == set(range(1, 7))
    found = {"state": max((a[name] - b[name]).abs().max().item() for name in common)}
    columns = {"loss": 0, "grad_norm": 1, "lr": 2}
    return found | {name: max(abs(log_a[s][i] - log_b[s][i]) for s in log_a) for name, i in columns.items()}
