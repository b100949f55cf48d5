"""One rank of a launch: its Accelerator, the signals that stop it, and its end."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast_object_list,
)

from ..hardware import runs_on_cpu, use_own_cores
from .config import TrainConfig

STOPPING = (signal.SIGTERM, signal.SIGINT)
PASSED_ON_SECONDS = 5.0  # torchrun sends its ranks what they got from the terminal or the cluster once more
OTHERS = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The Accelerator of this rank. Raises ValueError where the run would silently not be what was asked for."""
    accelerator = Accelerator(
        cpu=runs_on_cpu(),  # else ranks without a GPU would not find each other
        mixed_precision=config.mixed_precision,
        # A plugin: the plain argument gives way to the launcher's environment without a word.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps),
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(config.output_dir, logging_dir=f"{config.output_dir}/logs"),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # one copy of them, not two
    )
    use_own_cores(accelerator)
    _check_options(accelerator, config)
    _check_ranks(accelerator)
    return accelerator


def _check_options(accelerator: Accelerator, config: TrainConfig) -> None:
    if accelerator.device.type == "cpu" and config.mixed_precision == "fp16":
        raise ValueError(
            "mixed_precision='fp16' needs a GPU (on a CPU torch would silently compute in float32): choose bf16 or no."
        )
    if config.report_to != "none" and not accelerator.log_with:
        raise ValueError(
            f"report_to={config.report_to!r} is not installed: pip install {config.report_to}, or choose none."
        )


def _check_ranks(accelerator: Accelerator) -> None:
    # `accelerate launch --cpu --num_processes 2` starts one process; only the port for the others gives it away.
    alone = "2" if {"MASTER_PORT", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys() else "1"
    asked = os.environ.get("WORLD_SIZE", alone)
    if int(asked) != accelerator.num_processes:
        raise ValueError(
            f"The launcher was asked for {asked} ranks, but each would train alone. `accelerate launch --cpu` always starts"
            f" one rank: use `torchrun --nproc_per_node {asked} scripts/train.py`; or, where your shell"
            " exports MASTER_PORT, unset it for a single rank."
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not is_sharded(accelerator):
        raise ValueError(
            f"FSDP was asked for, but on {accelerator.num_processes} x {accelerator.device.type} Accelerate would train"
            " without it: it shards a model over two or more GPUs. Launch with another of accelerate_configs/."
        )
    if accelerator.distributed_type in OTHERS or (is_sharded(accelerator) and not accelerator.is_fsdp2):
        raise ValueError(
            f"distributed_type={accelerator.distributed_type.value}: averages and checkpoints know DDP, and FSDP with"
            " fsdp_version: 2 (accelerate_configs/fsdp2.yaml)."
        )


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether FSDP2 shards the model."""
    return accelerator.distributed_type == DistributedType.FSDP


@contextmanager
def local_main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Accelerate's, but where the first process fails it still meets the others, which wait for it."""
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


def on_main_process(accelerator: Accelerator, function: Callable[[], None]) -> None:
    """Call it on the main process; what it raises is raised on all ranks, which would wait for each other otherwise."""
    error = None
    if accelerator.is_main_process:
        try:
            function()
        except Exception as raised:
            error = raised
    (error,) = broadcast_object_list([error])
    if error is not None:
        raise error


def end_rank(accelerator: Accelerator) -> None:
    """End the trackers and the process group. The caller must have dropped its prepared model.

    DDP must be gone before its process group: as its last owner it destroys the group while it holds the GIL and joins a thread that
    may still wait for the GIL to free a gathered tensor. Such a rank hangs at its very end (torch 2.13, gloo).
    """
    accelerator.free_memory()
    accelerator.end_training()


def ignore_foreign_signals(_worker: int) -> None:
    """A loader's worker ignores signals that are not its rank's own: the rank saves first, and then ends its workers."""
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a signal to all processes still ends the workers
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        threading.Thread(target=_wait_for_signal_of_rank, daemon=True).start()


def _wait_for_signal_of_rank() -> None:
    rank = multiprocessing.parent_process()  # the system's parent may be a fork server
    while signal.sigwaitinfo(STOPPING).si_pid != rank.pid:
        pass
    os._exit(0)


class StopSignals:
    """Catches SIGTERM and Ctrl-C while it is entered.

    The first is noted, and the run ends after saving; one that comes more than PASSED_ON_SECONDS later ends it at once.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.number: int | None = None
        self.caught_at, self.is_agreed = 0.0, False

    def __enter__(self) -> "StopSignals":
        self.before = {number: signal.signal(number, self.catch) for number in STOPPING}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def catch(self, number: int, frame: FrameType | None = None) -> None:
        """The handler of a signal; KeyboardInterrupt for one that comes well after the first."""
        if self.number is None:
            self.number, self.caught_at = number, time.monotonic()
            self.accelerator.set_trigger()
        elif time.monotonic() - self.caught_at > PASSED_ON_SECONDS:
            raise KeyboardInterrupt(f"a second {signal.Signals(number).name}")

    def is_caught(self) -> bool:
        """Whether this rank got a signal."""
        return self.number is not None

    def on_any_rank(self, may_wait: bool) -> bool:
        """Whether any rank got a signal. Asking the others is a collective, done where `may_wait`; elsewhere the answer is no.

        Once it is yes it stays so, on all ranks: `check_trigger` forgets.
        """
        if self.accelerator.num_processes == 1:
            return self.is_caught()
        self.is_agreed = self.is_agreed or (may_wait and self.accelerator.check_trigger())
        return self.is_agreed

    @property
    def name(self) -> str:
        """The signal's; SIGTERM where it was another rank that got one."""
        return signal.Signals(self.number or signal.SIGTERM).name
