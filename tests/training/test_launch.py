"""The signals that stop a run, as its ranks get them."""

import signal

import pytest

from ddpm_hf.training import launch


class TwoRanks:
    """An Accelerator's trigger, which is forgotten once it was seen."""

    num_processes, triggered = 2, False

    def set_trigger(self):
        self.triggered = True

    def check_trigger(self):
        seen, self.triggered = self.triggered, False
        return seen


def test_ranks_go_on_agreeing_that_they_stop():
    """In the last phase, too, which asks again."""
    signals = launch.StopSignals(TwoRanks())
    assert not signals.on_any_rank(may_wait=True)
    signals.catch(signal.SIGTERM)
    assert not signals.on_any_rank(may_wait=False)  # the other rank does not know yet
    assert signals.on_any_rank(may_wait=True) and signals.on_any_rank(may_wait=True)
    assert signals.on_any_rank(may_wait=False)


def test_a_signal_that_the_launcher_passes_on_is_the_same_one(monkeypatch):
    """torchrun's ranks get a Ctrl-C from the terminal, and from torchrun."""
    signals, now = launch.StopSignals(TwoRanks()), [100.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: now[0])
    signals.catch(signal.SIGINT)
    now[0] += 1
    signals.catch(signal.SIGINT)
    now[0] += launch.PASSED_ON_SECONDS
    with pytest.raises(KeyboardInterrupt, match="a second SIGTERM"):
        signals.catch(signal.SIGTERM)
