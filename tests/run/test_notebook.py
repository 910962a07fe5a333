"""The notebook runs from top to bottom; it is kept without outputs and defines nothing."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PATH = ROOT / "notebooks" / "mosaic.ipynb"
LIMIT_S = 900  # of one cell on a busy machine


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebook_is_kept_without_outputs_and_defines_nothing():
    cells = code_cells(nbformat.read(PATH, as_version=4))
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    assert {cell.execution_count for cell in cells} == {None}
    source = "\n".join(re.sub(r"(?m)^%.*$", "", cell.source) for cell in cells)
    kinds = {type(node) for node in ast.walk(ast.parse(source))}
    assert ast.ImportFrom in kinds and not kinds & {ast.FunctionDef, ast.ClassDef, ast.Lambda}


@pytest.mark.slow
def test_notebook_draws_every_step_and_ends_with_what_the_synthesizer_makes():
    notebook = nbformat.read(PATH, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=LIMIT_S, kernel_name="python3", resources=resources).execute()
    cells = code_cells(notebook)
    for cell in cells:
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(pictures) == cell.source.count("plt.show()")
    assert sum(cell.source.count("plt.show()") for cell in cells) == 8
    printed = "".join(output.get("text", "") for output in cells[-1].outputs)
    found = re.search(r"at most (\d+) levels apart; verdicts as above: (\w+)", printed)
    assert int(found[1]) <= 2 and found[2] == "True"
