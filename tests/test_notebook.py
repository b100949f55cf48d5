"""The notebook runs from start to end with the package as it is, and the outputs that come with it are whole."""

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
    return "".join(
        output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"
    )


def num_pictures(cell) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_it_runs_from_start_to_end(notebook, monkeypatch):
    """On the few real images of tests/assets, with a training of a few steps; nothing else is shorter than for a reader."""
    monkeypatch.setenv("TRAIN_STEPS", "40")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(ASSETS / "idx"))
    shown = [num_pictures(cell) for cell in code_cells(notebook)]
    NotebookClient(notebook, timeout=170, kernel_name="python3").execute()  # raises with the cell's traceback
    cells = code_cells(notebook)
    assert [num_pictures(cell) for cell in cells] == shown and sum(shown) >= 10
    assert "error at the end: 0.000000" in text(cells[3])
    first, last = text(cells[6]).split("loss ")[1].split(" -> ")
    assert float(last) < 0.8 * float(first)
    assert 0 < float(text(cells[10]).split("bits_per_dim: ")[1].split()[0]) < 20


def test_the_outputs_that_come_with_it_are_whole(notebook):
    """Of one run from start to end, in order, with the training that the notebook tells of, and of a size for git."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(text(cell) or num_pictures(cell) for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert '"TRAIN_STEPS", 800)' in cells[0].source and "800 steps" in text(cells[6])
    assert PATH.stat().st_size < 1_000_000
