"""The import directions of the house: read from the source, so that they cannot drift."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ddpm_hf"
HUB_FILES = {"modeling_ddpm_unet", "scheduling_ddpm_noise", "pipeline_ddpm_image"}
ALLOWED_SIBLINGS = {
    **dict.fromkeys(
        HUB_FILES
        | {"objective", "likelihood", "fidelity", "sample_order", "ema", "grid", "report", "checkpoints", "push"},
        set(),
    ),
    "data": {"sample_order"},
    "cores": {"pipeline_ddpm_image"},
    "config": {"cores"},
    "evaluation_config": {"cores", "data", "scheduling_ddpm_noise"},
    "model_card": {"__version__"},
    "hub": HUB_FILES | {"model_card", "push"},
    "validation": {"grid", "objective"},
    "launch": {"config", "cores"},
    "training": HUB_FILES
    | {"validation", "checkpoints", "config", "cores", "data", "ema", "launch", "likelihood", "objective"}
    | {"hub", "sample_order"},
    "measures": {"data", "fidelity"},
    "evaluation": {"__version__", "cores", "data", "evaluation_config", "fidelity", "hub", "likelihood", "measures"}
    | {"pipeline_ddpm_image", "scheduling_ddpm_noise"},
    "__init__": HUB_FILES,
}
STANDARD = {
    "collections",
    "contextlib",
    "inspect",
    "json",
    "math",
    "numbers",
    "pathlib",
    "platform",
    "shutil",
    "typing",
}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports; siblings as ddpm_hf.NAME."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = f"ddpm_hf.{node.module}" if node.level and node.module else node.module or "ddpm_hf"
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "ddpm_hf" else {module}
    return found


def siblings(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("ddpm_hf.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_siblings(path):
    assert siblings(path) <= ALLOWED_SIBLINGS[path.stem]


@pytest.mark.parametrize("name", sorted(HUB_FILES))
def test_hub_files_stand_alone(name):
    top = {full.split(".")[0] for full in imports(PACKAGE / f"{name}.py")}
    assert top - STANDARD <= {"torch", "numpy", "PIL", "diffusers"}


def test_only_tests_import_scripts_and_the_app_stands_alone():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for path in set(ROOT.glob("*/*.py")) - set(ROOT.glob("tests/*.py")):
        top = {name.split(".")[0] for name in imports(path)}
        assert not top & scripts, path
        assert path.parent.name != "spaces_app" or "ddpm_hf" not in top, path


def test_the_hub_has_its_rooms():
    for path in PACKAGE.glob("*.py"):
        names_it = "huggingface_hub" in {name.split(".")[0] for name in imports(path)}
        assert not names_it or path.stem in {"hub", "push", "model_card"}, path


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_files_are_short(path):
    limit = {"modeling_ddpm_unet": 500, "scheduling_ddpm_noise": 430, "pipeline_ddpm_image": 310}.get(path.stem, 400)
    assert len(path.read_text().splitlines()) < limit


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_contributing_knows_each_room(path):
    assert f"`{path.stem}`" in (ROOT / "CONTRIBUTING.md").read_text()
