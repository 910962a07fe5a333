"""Run `train.py` as a newcomer does, and measure wall time, peak memory of all its processes, what it drew.

    python benchmarks/main_job.py [HYDRA OVERRIDES ...]

Peak memory is the sum of the proportional set sizes (PSS) of the process and all its descendants, read from
/proc four times a second. The last line is `RESULT {json}`.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def descendants(pid: int) -> list[int]:
    """Return a process and all below it."""
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                queue += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of one process; 0 if it has just ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def measure(overrides: list[str], run_dir: Path) -> dict[str, float]:
    """Run the job and return its figures."""
    command = [sys.executable, "train.py", f"hydra.run.dir={run_dir}", *overrides]
    started, peak_bytes, most_processes = time.monotonic(), 0, 0
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        pids = descendants(process.pid)
        peak_bytes = max(peak_bytes, sum(map(pss_bytes, pids)))
        most_processes = max(most_processes, len(pids))
        time.sleep(0.25)
    results = json.loads((run_dir / "results.json").read_text()) if process.returncode == 0 else {}
    wanted = (
        "steps", "val/segm/AP", "val/segm/APr", "val/segm/APc", "val/segm/APf", "synthesis/synthetic_share",
        "synthesis/fallback_ratio", "synthesis/images", "synthesis/regions", "synthesis/rejected_ratio",
    )  # fmt: skip
    return {
        "exit_code": process.returncode,
        "wall_s": round(time.monotonic() - started, 1),
        "peak_gb": round(peak_bytes / 1e9, 2),
        "processes": most_processes,
        **{key: results[key] for key in wanted if key in results},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(sys.argv[1:], Path(folder) / "run")
    for name, value in figures.items():
        print(f"{name:<28} {value}")
    print("RESULT", json.dumps(figures))
    sys.exit(figures["exit_code"])


if __name__ == "__main__":
    main()
