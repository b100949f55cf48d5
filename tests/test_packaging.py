"""The sdist, the wheel that is built from it, and the wheel in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny import ROOT


def build(kind: str, source, out) -> str:
    """Run the build backend's hook in a source tree -> the archive's name; without a network."""
    call = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    run = subprocess.run([sys.executable, "-c", call, out], cwd=source, check=True, capture_output=True, text=True)
    return run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the sdist, of a copy of the tree."""
    home = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT / "ddpm_hf", home / "tree" / "ddpm_hf")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "model_card.md"):
        shutil.copy(ROOT / name, home / "tree")
    with tarfile.open(home / build("sdist", home / "tree", home)) as sdist:
        sdist.extractall(home / "sdist", filter="data")
    (source,) = (home / "sdist").iterdir()
    return home / build("wheel", source, home)


def test_the_wheel_has_the_whole_package(wheel):
    package = ROOT / "ddpm_hf"
    files = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.suffix in (".py", ".typed")}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("ddpm_hf-")}
    assert found == files | {"ddpm_hf/model_card.md"}


def test_the_wheel_is_used_in_a_fresh_environment(wheel, saved, tmp_path):
    """With the packages of this environment, but not its ddpm_hf: a .pth file adds the folder, and runs none of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python, commands = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin"
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")})
    Path(site, "others.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command) -> str:
        run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert run(python, "-c", "import ddpm_hf; print(ddpm_hf.__file__)").startswith(site)
    assert "2 images -> out" in run(
        commands / "ddpm-sample", saved, *"--num_images 2 --num_inference_steps 2 --output_dir out".split()
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]
    for name in ("train", "evaluate", "push"):
        assert f"usage: ddpm-{name}" in run(commands / f"ddpm-{name}", "--help")


def test_the_lock_file_pins_what_is_tested_with_hashes():
    """`make lock` after a change of constraints.txt."""
    tested = {line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")}
    pins = re.findall(r"^([\w.-]+==\S+) \\\n    --hash=sha256:", (ROOT / "requirements-dev.txt").read_text(), re.M)
    assert {pin.replace("_", "-") for pin in tested} <= set(pins)
