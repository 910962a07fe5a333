"""The house rules that a machine can keep: floors and names."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "misc", "base"}


def test_imports_go_down_the_floors():
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 7 kept, 0 broken" in done.stdout


def test_files_are_named_after_what_they_hold():
    for path in (ROOT / "mflight").rglob("*.py"):
        assert path.stem not in FORBIDDEN_NAMES, path
        assert path.name != "__init__.py" or path.read_text() == "", path
    assert {path.name for path in ROOT.glob("*.py")} == {"train.py"}
