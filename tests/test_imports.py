"""The import directions of the house: read from the source, so that they cannot drift."""

import sys

import pytest
from source import imports, module_name
from tiny import ROOT

PACKAGE = ROOT / "ddpm_hf"
HUB_FILES = {"modeling_ddpm_unet", "scheduling_ddpm_noise", "pipeline_ddpm_image"}
GROUND_FLOOR = HUB_FILES | {"objective", "distillation", "likelihood", "keys", "images", "hardware", "lazy"}
# Wing or module of the ground floor -> those that it imports. Arrows go down only.
ARROWS = {
    "cli": {"training", "evaluation", "hub", "data", "images", "pipeline_ddpm_image"},
    "evaluation": {"hub", "data", "likelihood", "images", "keys", "hardware", "lazy"}
    | {"scheduling_ddpm_noise", "pipeline_ddpm_image"},
    "training": {"hub", "data", "objective", "images", "keys", "hardware", "lazy"} | HUB_FILES,
    "hub": {"scheduling_ddpm_noise", "pipeline_ddpm_image"},
    "data": {"images", "keys", "lazy", "pipeline_ddpm_image"},
    "objective": {"distillation", "likelihood", "scheduling_ddpm_noise", "pipeline_ddpm_image"},
    "distillation": {"likelihood", "scheduling_ddpm_noise", "pipeline_ddpm_image"},
    "likelihood": {"keys", "scheduling_ddpm_noise"},
    "hardware": {"pipeline_ddpm_image"},
    "images": set(),
    "lazy": set(),
    "keys": set(),
    **{name: set() for name in HUB_FILES},
}


def wing(module: str) -> str:
    """ddpm_hf.data.images -> data."""
    return module.split(".")[1]


def test_arrows():
    """Both ways: no import that the table lacks, and no arrow that is not used."""
    found: dict[str, set[str]] = {name: set() for name in ARROWS}
    for path in PACKAGE.rglob("*.py"):
        if path.parent != PACKAGE or path.stem != "__init__":
            here = wing(module_name(path))
            there = {name for name in imports(path) if name.startswith("ddpm_hf.")} - {"ddpm_hf.__version__"}
            found[here] |= {wing(name) for name in there} - {here}
    assert found == ARROWS


@pytest.mark.parametrize("name", sorted(HUB_FILES))
def test_hub_files_stand_alone(name):
    top = {full.split(".")[0] for full in imports(PACKAGE / f"{name}.py")}
    assert top - sys.stdlib_module_names <= {"torch", "numpy", "PIL", "diffusers", "transformers"}


def test_only_tests_import_scripts_and_the_app_stands_alone():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for folder in ("ddpm_hf", "scripts", "spaces_app", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            top = {name.split(".")[0] for name in imports(path)}
            assert not top & scripts, path
            assert folder != "spaces_app" or "ddpm_hf" not in top, path


def test_the_hub_has_its_wing():
    for path in PACKAGE.rglob("*.py"):
        names_it = "huggingface_hub" in {name.split(".")[0] for name in imports(path)}
        assert not names_it or path.parent.name == "hub", path


def test_no_test_module_imports_another():
    paths = set((ROOT / "tests").rglob("test_*.py"))
    modules = {path.stem for path in paths} | {"conftest"}
    for path in paths:
        assert not imports(path) & modules, path


def test_every_part_of_the_package_is_in_the_table():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == set(ARROWS) == GROUND_FLOOR | {"data", "training", "evaluation", "hub", "cli"}
