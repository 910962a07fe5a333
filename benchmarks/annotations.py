"""Annotations at the size of LVIS v1: ours beside the ``lvis`` package's reader on made data, in one run.

    python benchmarks/annotations.py --categories LVIS_CATEGORIES.json
    python benchmarks/annotations.py --images 10017 --root DIR        a tenth; DIR keeps the data

Each measurement runs in a process of its own. Opening is timed without imports, the file lying in the page
cache. An epoch reads boxes, labels and every polygon of all images, shuffled, in forked DataLoader workers;
while they still live, ``/proc/PID/smaps_rollup`` tells their private memory, less that of as many workers
with an empty dataset. The last line is ``RESULT {json}``: ``open_first_s``,
``open_later_s``, ``worker_extra_mb`` (the largest of the workers), and the reader's own figures as ``lvis_``.
"""

import argparse
import json
import multiprocessing
import os
import queue
import re
import shutil
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
from lvis_format_data import LVIS_IMAGES, read_categories, write_annotations

FILES = [("train2017/000000000001.jpg", (480, 640)), ("train2017/000000000002.jpg", (427, 640))]
LVIS_WORKERS = 2  # more do not fit into 24 GB


class Empty:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


class Ours:
    def __init__(self, annotations):
        self.annotations = annotations

    def __len__(self):
        return len(self.annotations)

    def __getitem__(self, index):
        return len(self.annotations.target(index)["labels"]) + len(self.annotations.outlines(index).vertices)


class Theirs:
    def __init__(self, reader):
        self.reader, self.ids = reader, sorted(reader.imgs)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        entries = self.reader.img_ann_map[self.ids[index]]
        boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float32)
        outlines = [np.array(p, dtype=np.float32) for entry in entries for p in entry["segmentation"]]
        return len(boxes) + sum(len(outline) // 2 for outline in outlines)


class Clock:
    """Seconds and memory that opening takes, what is imported before not counted."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.mb, self.start = memory_mb("self", "Pss"), time.perf_counter()

    def figures(self):
        seconds = time.perf_counter() - self.start
        peak_kb = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)
        return {
            "open_s": seconds,
            "process_mb": memory_mb("self", "Pss") - self.mb,
            "peak_mb": int(peak_kb) / 1024 - self.mb,
        }


def open_ours(path, cache):
    from mflight.data.lvis import LVISAnnotations

    clock = Clock()
    return Ours(LVISAnnotations(path, cache)), clock.figures()


def open_theirs(path, _):
    import logging

    from lvis import LVIS

    logging.disable(logging.INFO)
    clock = Clock()
    return Theirs(LVIS(str(path))), clock.figures()


def open_empty(path, _):
    return Empty(int(path)), {}


def measure(opener, path, cache, num_workers, answer):
    """Open, then run an epoch if there are workers; answer with seconds and MB."""
    from torch.utils.data import DataLoader

    warnings.filterwarnings("ignore", message="This DataLoader will create")
    dataset, figures = opener(path, cache)
    if num_workers:
        start = time.perf_counter()
        loader = DataLoader(
            dataset,
            batch_size=64,
            shuffle=True,
            num_workers=num_workers,
            multiprocessing_context="fork",
            collate_fn=sum,
        )
        batches = iter(loader)
        figures["sum"] = sum(islice(batches, len(loader)))  # the workers live until the iterator ends
        figures["images_per_s"] = len(dataset) / (time.perf_counter() - start)
        workers = [process.pid for process in multiprocessing.active_children()]
        assert len(workers) == num_workers
        figures["worker_mb"] = [memory_mb(pid, "Private_Clean", "Private_Dirty") for pid in workers]
        figures["total_mb"] = sum(memory_mb(pid, "Pss") for pid in ["self", *workers])
        del batches
    answer.put(figures)


def memory_mb(pid, *keys):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in keys) / 1024


def in_own_process(*arguments):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=measure, args=(*arguments, answer))
    process.start()
    while True:
        try:
            figures = answer.get(timeout=5)
            break
        except queue.Empty:
            if not process.is_alive():
                raise RuntimeError(f"a measurement ended with code {process.exitcode}") from None
    process.join()
    return figures


def extra_mb(figures, empty):
    return max(figures["worker_mb"]) - sum(empty["worker_mb"]) / len(empty["worker_mb"])


def measure_ours(path, cache, num_images, num_workers):
    shutil.rmtree(cache, ignore_errors=True)
    first = in_own_process(open_ours, path, cache, 0)
    later = in_own_process(open_ours, path, cache, 0)
    epoch = in_own_process(open_ours, path, cache, num_workers)
    empty = in_own_process(open_empty, str(num_images), None, num_workers)
    return {
        "open_first_s": round(first["open_s"], 2),
        "open_later_s": round(later["open_s"], 3),
        "worker_extra_mb": round(extra_mb(epoch, empty), 1),
        "worker_mb": [round(v, 1) for v in epoch["worker_mb"]],
        "empty_worker_mb": [round(v, 1) for v in empty["worker_mb"]],
        "process_first_mb": round(first["process_mb"]),
        "process_peak_mb": round(first["peak_mb"]),
        "process_later_mb": round(later["process_mb"]),
        "total_mb": round(epoch["total_mb"]),
        "images_per_s": round(epoch["images_per_s"]),
    }, epoch["sum"]


def measure_lvis(path, num_images, num_workers):
    epoch = in_own_process(open_theirs, path, None, num_workers)
    empty = in_own_process(open_empty, str(num_images), None, num_workers)
    return {
        "lvis_open_s": round(epoch["open_s"], 2),
        "lvis_process_mb": round(epoch["process_mb"]),
        "lvis_process_peak_mb": round(epoch["peak_mb"]),
        "lvis_worker_extra_mb": round(extra_mb(epoch, empty), 1),
        "lvis_num_workers": num_workers,
        "lvis_total_mb": round(epoch["total_mb"]),
        "lvis_images_per_s": round(epoch["images_per_s"]),
    }, epoch["sum"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=LVIS_IMAGES)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--categories", default=None, help="JSON list of LVIS categories with counts")
    parser.add_argument("--root", type=Path, default=None, help="keeps the data; made if absent")
    parser.add_argument("--ours-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = arguments.root or Path(name)
        root.mkdir(parents=True, exist_ok=True)
        path = root / f"annotations_{arguments.images}.json"
        if not path.is_file():
            categories = read_categories(arguments.categories)
            write_annotations(path, num_images=arguments.images, categories=categories, files=FILES)
        size_mb = path.stat().st_size / 2**20
        print(f"{arguments.images} images, {size_mb:.0f} MiB of JSON, {os.cpu_count()} cores")
        result, ours = measure_ours(path, root / "cache", arguments.images, arguments.workers)
        print(
            f"ours: opened in {result['open_first_s']} s, later in {result['open_later_s']} s; each of "
            f"{arguments.workers} workers gains {result['worker_extra_mb']} MB at most, in all they are "
            f"{result['total_mb']} MB"
        )
        if not arguments.ours_only:
            lvis, theirs = measure_lvis(path, arguments.images, LVIS_WORKERS)
            assert ours == theirs, f"both must read the same boxes and vertices, got {ours} and {theirs}"
            result |= lvis
            print(
                f"lvis: opened in {lvis['lvis_open_s']} s; each of {LVIS_WORKERS} workers gains "
                f"{lvis['lvis_worker_extra_mb']} MB; {lvis['lvis_total_mb']} MB in all"
            )
            ratio = lvis["lvis_worker_extra_mb"] / max(result["worker_extra_mb"], 0.1)
            print(
                f"ratio of memory a worker: {ratio:.0f}; of opening again: "
                f"{lvis['lvis_open_s'] / result['open_later_s']:.0f}"
            )
    print("RESULT", json.dumps({"images": arguments.images, "workers": arguments.workers, **result}))


if __name__ == "__main__":
    main()
