"""The notebook runs from start to end with the package as it is, and the outputs that come with it are whole."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny import ASSETS

PATH = Path(__file__).parents[1] / "notebooks" / "ddpm_from_scratch.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def all_text(notebook) -> str:
    return "".join(map(text, code_cells(notebook)))


def num_pictures(cell) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_it_runs_from_start_to_end(notebook, monkeypatch):
    """On the few real images of tests/assets, with a training of a few steps; nothing else is shorter than for a reader.

    Its cells assert that what they write by hand equals the package's. A clone without the text model or its encoder lacks the last picture.
    """
    monkeypatch.setenv("TRAIN_STEPS", "40")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(ASSETS / "idx"))
    shown = [num_pictures(cell) for cell in code_cells(notebook)]
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()  # raises with the cell's traceback
    if "No text model here" in all_text(notebook):
        shown[-1] = 0
    assert [num_pictures(cell) for cell in code_cells(notebook)] == shown and sum(shown) >= 14
    first, last = re.search(r"loss (\S+) -> (\S+)", all_text(notebook)).groups()
    assert float(last) < 0.8 * float(first)
    bits = re.findall(r"(\S+) \+- \S+ bits/dim", all_text(notebook))
    assert len(bits) == 2 and all(0 < float(value) < 20 for value in bits)


def test_the_outputs_that_come_with_it_are_whole(notebook):
    """Of one run from start to end, in order, with the training that the notebook tells of, and of a size for git.
    Warnings are left out: they name directories."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.get("name", output.output_type) for cell in cells for output in cell.outputs}
    assert kinds == {"stdout", "execute_result", "display_data"}
    assert '"TRAIN_STEPS", 800)' in cells[0].source and "800 steps" in all_text(notebook)
    assert PATH.stat().st_size < 1_000_000
