"""The network is called in one place: what a condition is, and how the network takes it, is the pipeline's alone."""

import ast

from tiny import ROOT

NETWORKS = {"unet", "network", "model", "teacher", "transformer"}


def test_the_network_is_called_by_denoise_alone():
    found = []
    for folder in ("ddpm_hf", "scripts", "spaces_app", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.is_symlink():  # to one of these
                continue
            for function in ast.walk(ast.parse(path.read_text())):
                if isinstance(function, ast.FunctionDef):
                    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                    names = {getattr(call, "id", getattr(call, "attr", None)) for call in calls}
                    found += [(path.name, function.name)] * bool(names & NETWORKS)
    assert found == [("pipeline_ddpm_image.py", "denoise")]
