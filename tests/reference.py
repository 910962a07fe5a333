"""Where the reference outputs of the published program lie; tests that need them skip without."""

import os
from pathlib import Path

REFERENCE = Path(
    os.environ.get("MFLIGHT_REFERENCE", Path(__file__).resolve().parents[2] / "shared" / "reference")
)
