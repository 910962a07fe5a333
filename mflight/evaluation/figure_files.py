"""The files that `mflight.evaluate` writes, each in one piece."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def require_folders(output: str | None, per_class: str | None) -> None:
    """Raise a FileNotFoundError if the folder of a file that shall be written is not there."""
    for key, path in (("output", output), ("per_class", per_class)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(
                f"{key} must lie in an existing folder, found none at {Path(path).parent}"
            )


def write_figures(
    figures: dict[str, dict[str, float]],
    rows: list[dict[str, Any]],
    output: str | None,
    per_class: str | None,
) -> None:
    """Write figures as JSON and rows, all of the same keys, as CSV; ``None`` writes nothing."""
    if output is not None:
        _write_atomically(Path(output), json.dumps(figures, indent=2) + "\n")
    if per_class is not None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["category_id"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write_atomically(Path(per_class), text.getvalue())


def _write_atomically(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
