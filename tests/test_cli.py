"""The commands before they work: help, mistakes, other names for options, a missing package."""

import subprocess
import sys

import pytest
from tiny import ROOT

from ddpm_hf.cli import evaluate, train

# Runs a script -> its exit code, CPU seconds, and whether it imported torch, in the last line of stdout.
RUN = """
import runpy, sys, time
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exit:
    code = exit.code
print()
print(code or 0, time.process_time(), "torch" in sys.modules)
"""


def run_script(name: str, *arguments: str, before: str = "") -> tuple[int, float, bool, str]:
    command = [sys.executable, "-c", before + RUN, str(ROOT / name), *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    code, seconds, imported = run.stdout.splitlines()[-1].split()
    return int(code), float(seconds), imported == "True", run.stdout + run.stderr


@pytest.mark.parametrize(
    "script", ["spaces_app/app.py", *sorted(f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py"))]
)
def test_help_answers_before_torch_is_imported(script):
    code, _, has_torch, told = run_script(script, "--help")
    assert (code, has_torch) == (0, False) and "usage: " in told and "None)" not in told


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["--learning_rate", "0"], "learning_rate=0.0 must be above 0"),
        ("train.py", ["--preset", "nope"], "preset='nope': choose one of"),
        ("train.py", ["--steps", "1"], "unrecognized arguments: --steps 1"),
        ("sample.py", ["model", "--eta", "2"], "--eta 2.0 must be from 0 to 1"),
        ("evaluate.py", ["model", "--metrics", "is"], "metrics has ['is']: choose from ['bpd', 'fid'"),
        ("evaluate.py", ["model", "--sampler", "euler"], "sampler='euler': choose from ['own', 'ddpm'"),
        ("push_to_hub.py", ["model"], "give MODEL and --repo_id"),
        ("average.py", ["run"], "the following arguments are required"),
        ("train_classifier.py", ["--output", "x", "--num_epochs", "0"], "num_epochs=0 must be above 0"),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(script, arguments, message):
    code, _, has_torch, told = run_script(f"scripts/{script}", *arguments)
    assert (code, has_torch) == (2, False) and message in told, told


def test_help_takes_little_time():
    assert min(run_script("scripts/train.py", "--help")[1] for _ in range(3)) < 1.5


@pytest.mark.parametrize(
    ("script", "arguments", "package", "extra"),
    [
        ("train.py", [], "datasets", "train"),
        ("evaluate.py", ["model"], "torchmetrics", "eval"),
        ("train_classifier.py", ["--output", "x"], "torchmetrics", "eval"),
    ],
)
def test_a_missing_package_is_one_line_with_the_way_to_install_it(script, arguments, package, extra):
    code, _, _, told = run_script(
        f"scripts/{script}", *arguments, before=f"import sys; sys.modules['{package}'] = None\n"
    )
    error = f'error: No module named {package!r}: pip install -e ".[{extra}]"'
    assert code == 1 and error in told.splitlines(), told


@pytest.mark.parametrize(
    ("started_as", "launcher", "begins"),
    [
        ("scripts/evaluate.py", None, "python scripts/evaluate.py model --seed 3"),
        ("bin/ddpm-evaluate", None, "ddpm-evaluate model --seed 3"),
        ("scripts/evaluate.py", "no", "accelerate launch scripts/evaluate.py model --seed 3"),
        ("bin/ddpm-evaluate", "no", "accelerate launch -m ddpm_hf.cli.evaluate model --seed 3"),
    ],
)
def test_the_command_that_repeats_an_evaluation_names_the_program_that_ran(started_as, launcher, begins, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started_as])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    settings = {"num_images": 10, "mixed_precision": "no", "num_inference_steps": 4, "eta": None}
    settings |= {"timesteps": [9, 6, 3, 0], "solver_order": None, "guidance_scale": 1.0, "guidance_interval": None}
    command = evaluate.repeating_command(["model", "--seed", "3"], settings)
    assert (
        command
        == f"{begins} --num_images 10 --mixed_precision no --num_inference_steps 4 --timesteps 9 6 3 0 --guidance_scale 1.0"
    )


def test_options_have_their_names_of_diffusers_as_well():
    config = train.parse_args(["--dataset_name", "a/b"])
    assert config.dataset == train.parse_args(["--train_data_dir", "a/b"]).dataset == "a/b"
    assert train.parse_args(["--pretrained_model_name_or_path", "a/b"]).init_from == "a/b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution=64"], "--list_presets"),
        (["--num_epochs", "3"], "--max_train_steps"),
        (["--num-train-epochs", "3"], "--max_train_steps"),
        (["--use_ema"], "--ema_decay"),
        (["--resume_from_checkpoint", "latest"], "--resume goes on"),
    ],
)
def test_options_of_diffusers_that_differ_are_told_ours(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse_args(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ([], ["(default: fashion-mnist-quick)", "(default: 6000)", "(default: 0.998)", "(default: 0)"]),
        ([], ["true or false. (default: False)", "x_0 or v. (default: sample)", "no guidance. (default: 1.7)"]),
        (["--preset", "cifar10", "--max_train_steps", "80000"], ["(default: uoft-cs/cifar10)", "(default: 0.999)"]),
        (["--preset", "fashion-mnist-nll"], ["(default: hybrid)", "(default: learned_range)", "(default: epsilon)"]),
        (["--init_from", "model"], ["(default: 2000)", "(default: 0.995)"]),
    ],
)
def test_help_shows_the_values_that_will_hold(arguments, values, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # no value is broken
    with pytest.raises(SystemExit, match="0"):
        train.parse_args([*arguments, "--help"])
    told = capsys.readouterr().out
    assert all(value in told for value in values)


def test_the_presets_as_a_table(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.parse_args(["--list_presets"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[1:]] == list(train.PRESETS)
    assert rows[1 + list(train.PRESETS).index("cifar10")].split()[1:] == (
        "uoft-cs/cifar10 32 x 32, colour none epsilon 800000 128 0.0002".split()
    )
