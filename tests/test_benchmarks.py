"""The benchmark's turns, medians and ratios, and one section of it from the command line to its files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import plot
import programs
import run
from activations import kept_of_an_image
from programs import images_per_second, launch
from rounds import compare, seconds_per_call, take_turns


def test_the_sides_take_turns_back_and_forth():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in ("ours", "theirs", "roof")}
    values = take_turns(sides, rounds=3)
    assert calls == ["ours", "theirs", "roof", "roof", "theirs", "ours", "ours", "theirs", "roof"]
    assert values == {"ours": [1, 6, 7], "theirs": [2, 5, 8], "roof": [3, 4, 9]}


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    values = {"ours": [2.0, 6.0, 40.0], "theirs": [1.0, 2.0, 20.0]}  # the machine became slower, the sides alike
    rate = compare("x", "images/s", values, targets={"theirs": 1.5})
    assert rate["sides"]["ours"]["median"] == 6.0
    assert rate["times_better"] == {"theirs": {"median": 2.0, "least": 2.0, "most": 3.0, "target": 1.5}}
    time = compare("x", "s", values, lower_is_better=True)["times_better"]["theirs"]
    assert (time["median"], time["least"], time["most"], time["target"]) == (0.5, 1 / 3, 0.5, None)


def test_without_ours_there_is_nothing_to_compare():
    assert compare("x", "GFLOP/s", {"machine": [1.0]})["times_better"] == {}


def test_a_call_is_timed_at_least_once():
    calls = []
    assert seconds_per_call(lambda: calls.append(None), at_least=0) > 0
    assert len(calls) == 1


def test_the_rate_leaves_out_the_first_third():
    times = [(step, 100.0 if step < 20 else 200.0 + 0.5 * step) for step in range(1, 61)]
    assert images_per_second(times, batch_size=8) == 16.0


def test_a_program_that_fails_says_why(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        launch(["-c", "raise SystemExit('no torch here')"], tmp_path)
    assert "no torch here" in caught.value.output


def test_a_programs_memory_is_its_own(tmp_path):
    seconds, most = launch(["-c", "print('hello')"], tmp_path)
    assert seconds > 0 and 1 < most < 100  # this process, with torch, holds more


def test_scheduler_section_end_to_end(tmp_path, capsys):
    output = tmp_path / "results.json"
    options = ["--only", "scheduler", "--rounds", "2", "--seconds", "0.01", "--output", str(output)]
    assert run.main(options) == 0
    table = capsys.readouterr().out
    results = json.loads(output.read_text())
    rows = {row["name"]: row for row in results["sections"]["scheduler"]}
    assert list(rows) == ["ancestral step", "ancestral step, overhead", "DDIM step", "DDIM step, overhead"]
    for row in rows.values():
        assert all(len(side["rounds"]) == 2 for side in row["sides"].values())
        assert row["name"] in table
    overhead = rows["ancestral step, overhead"]
    assert 0 < overhead["operations"] < rows["ancestral step"]["sides"]["diffusers"]["median"]
    assert overhead["times_better"]["diffusers"]["target"] == 3.0
    assert set(results["skipped"]) == set(run.SECTIONS) - {"scheduler"}
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_has_all_its_bars_in_the_committed_results(tmp_path):
    results = json.loads((BENCHMARKS / "results.json").read_text())
    measured = {(row["name"], peer) for rows in results["sections"].values() for row in rows for peer in row["sides"]}
    assert set(plot.BARS) <= measured and len(plot.BARS) <= 10
    plot.plot(results, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_a_checkout_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.parse_args(["--diffusers", str(tmp_path)])
    assert f"--diffusers {tmp_path}: " in capsys.readouterr().err


def test_peers_that_are_not_there_are_named(tmp_path, monkeypatch):
    skipped = {}
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    options = run.parse_args([])
    options.skip = skipped.__setitem__
    assert list(programs.trainings(options, tmp_path / "images")) == ["ours"]
    assert list(skipped) == ["training: train_unconditional", "training: denoising-diffusion-pytorch"]


def test_the_docs_say_what_autograd_keeps_of_an_image():
    """A and A' of the cifar10 preset, in the MB of its table."""
    readme = (BENCHMARKS.parent / "docs" / "scale.md").read_text()
    told = [float(value) for value in re.search(r"\| `cifar10` \|[^|]*\| ([\d.]+), ([\d.]+) MB", readme).groups()]
    assert [kept / 1e6 for kept in kept_of_an_image("cifar10")] == pytest.approx(told, rel=0.03)
