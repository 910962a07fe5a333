"""The house rules that a machine can keep: floors, length of functions, names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mflight"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES = 50
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "misc", "base"}
TOO_LONG = {"build_mask_rcnn"}  # one keyword argument a line: a flat table of settings
"""Functions that may be longer, each with its reason."""


def functions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function):
    """Count the lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def test_imports_go_down_the_floors():
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 6 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_named_after_what_it_holds(path):
    assert path.stem not in FORBIDDEN_NAMES
    if path.name == "__init__.py":
        assert path.read_text() == ""


def test_functions_are_short():
    long = {
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}": code_lines(function)
        for path in [*SOURCES, ROOT / "train.py"]
        for function in functions(path)
        if code_lines(function) >= MAX_FUNCTION_LINES and function.name not in TOO_LONG
    }
    assert long == {}


def test_the_top_level_holds_what_a_newcomer_expects():
    kept = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "train.py"}
    python_files = {path.name for path in ROOT.glob("*.py")}
    assert python_files == {"train.py"}
    assert {"README.md", "LICENSE", "pyproject.toml"} <= {path.name for path in ROOT.iterdir()} & kept
