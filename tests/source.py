"""Reads the project's source: what a file imports."""

import ast
from pathlib import Path

from tiny import ROOT


def module_name(path: Path) -> str:
    """ddpm_hf/data/images.py -> ddpm_hf.data.images; the module of an __init__.py is its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, names imported from a package included."""
    found = set()
    package = module_name(path).split(".")[: None if path.stem == "__init__" else -1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found
