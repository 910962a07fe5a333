"""Our LVIS evaluator beside the ``lvis`` package's on made data: speed, figures, memory.

    python benchmarks/evaluation.py                       2,000 images, both evaluators
    python benchmarks/evaluation.py --images 20000 --ours-only

Both start from the annotation file and end with the thirteen figures of boxes and masks; the predictions are
loaded before and not counted. Each runs in a process of its own, for the memory. The last line is
``RESULT {json}``: ``speedup``, ``max_abs_difference`` (figures in [0, 1]) and ``peak_gb`` (ours, beside the
predictions, worker processes included).
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

HEIGHT_PX, WIDTH_PX = 480, 640
NUM_CATEGORIES, NUM_DETECTIONS, NUM_INSTANCES = 1203, 300, 20
IOU_TYPES = ("bbox", "segm")


def make_data(folder, num_images, seed):
    """Write ground_truth.json and results.json; class weights fall by a power law."""
    draws = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, NUM_CATEGORIES + 1) ** 0.9
    weights = draws.permutation(weights / weights.sum())
    bank = [ellipse(draws) for _ in range(2000)]
    categories = [
        {
            "id": index + 1,
            "name": f"c{index}",
            "frequency": "rcf"[np.searchsorted([0.0002, 0.001], weights[index])],
        }
        for index in range(NUM_CATEGORIES)
    ]
    images, annotations = [], []
    with (folder / "results.json").open("wb") as file:
        for image_id in range(1, num_images + 1):
            image, own = make_image(draws, image_id, len(annotations), weights, bank)
            images.append(image)
            annotations.extend(own)
            entries = [
                msgspec.json.encode(entry) for entry in make_detections(draws, image, own, weights, bank)
            ]
            file.write((b"[" if image_id == 1 else b",") + b",".join(entries))
        file.write(b"]")
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "ground_truth.json").write_bytes(msgspec.json.encode(content))


def ellipse(draws):
    """One outline of about 24 points, its box, and the RLEs of five jittered copies."""
    width, height = np.exp(draws.uniform(np.log(10), np.log(250), 2))
    x, y = draws.uniform(0, [WIDTH_PX - width, HEIGHT_PX - height])
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = draws.uniform(0.8, 1.0, 24)
    points = np.stack([np.cos(turn) * radius * width, np.sin(turn) * radius * height], axis=1) / 2
    points += [x + width / 2, y + height / 2]
    copies = []
    for scale in (0.0, 0.03, 0.06, 0.12, 0.25):
        shift = draws.normal(0, 1, 2) * scale * [width, height]
        rle = coco_mask.frPyObjects([(points + shift).ravel().tolist()], HEIGHT_PX, WIDTH_PX)[0]
        box = [round(float(v), 2) for v in (*(points + shift).min(axis=0), *np.ptp(points, axis=0))]
        copies.append((box, {"size": [HEIGHT_PX, WIDTH_PX], "counts": rle["counts"].decode()}))
    return np.round(points, 2).ravel().tolist(), copies


def make_image(draws, image_id, first_id, weights, bank):
    classes = draws.choice(NUM_CATEGORIES, int(draws.integers(4, 12)), p=weights)
    negative = draws.choice(NUM_CATEGORIES, 14, p=weights, replace=False)
    annotations = []
    for category in draws.choice(classes, int(draws.integers(NUM_INSTANCES // 2, NUM_INSTANCES * 3 // 2))):
        shape = int(draws.integers(len(bank)))
        polygon, copies = bank[shape]
        box = copies[0][0]
        annotations.append(
            {
                "id": first_id + len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(category) + 1,
                "bbox": box,
                "area": 0.75 * box[2] * box[3],
                "segmentation": [polygon],
                "shape": shape,
            }
        )
    present = {entry["category_id"] for entry in annotations}
    image = {
        "id": image_id,
        "height": HEIGHT_PX,
        "width": WIDTH_PX,
        "neg_category_ids": sorted({int(c) + 1 for c in negative} - present),
        "not_exhaustive_category_ids": sorted(present)[:1],
    }
    return image, annotations


def make_detections(draws, image, annotations, weights, bank):
    near = draws.random(NUM_DETECTIONS) < 0.5
    sources = draws.integers(len(annotations), size=NUM_DETECTIONS)
    shapes = draws.integers(len(bank), size=NUM_DETECTIONS)
    jitters = draws.integers(5, size=NUM_DETECTIONS)
    others = draws.choice(NUM_CATEGORIES, NUM_DETECTIONS, p=weights) + 1
    confused = draws.random(NUM_DETECTIONS) < 0.4
    scores = np.round(draws.random(NUM_DETECTIONS), 4)
    for number in range(NUM_DETECTIONS):
        source = annotations[sources[number]]
        box, rle = bank[source["shape"] if near[number] else shapes[number]][1][jitters[number]]
        keeps_class = near[number] and not confused[number]
        yield {
            "image_id": image["id"],
            "category_id": source["category_id"] if keeps_class else int(others[number]),
            "score": float(scores[number]),
            "bbox": box,
            "segmentation": rle,
        }


def run_ours(folder, num_workers, answer):
    from mflight.evaluation.ground_truth import GroundTruth
    from mflight.evaluation.results import score_results

    results = msgspec.json.decode((folder / "results.json").read_bytes())
    before_gb = reset_peak_gb()
    workers = WorkerPeaks()
    start = time.perf_counter()
    ground_truth = GroundTruth.load(folder / "ground_truth.json")
    evaluator = score_results(ground_truth=ground_truth, results=results, num_workers=num_workers)
    figures = evaluator.compute()
    seconds = time.perf_counter() - start
    in_percent = {key: {n: v / 100 if v != -1 else v for n, v in own.items()} for key, own in figures.items()}
    answer.put((in_percent, seconds, status_gb("VmHWM") - before_gb + workers.total_gb()))


def run_lvis(folder, answer):
    import lvis.eval
    from lvis import LVIS, LVISEval, LVISResults

    class Numpy:
        float = float

        def __getattr__(self, name):
            return getattr(np, name)

    lvis.eval.np = Numpy()
    results = msgspec.json.decode((folder / "results.json").read_bytes())
    before_gb = reset_peak_gb()
    start = time.perf_counter()
    figures = {}
    for iou_type in IOU_TYPES:
        ground_truth = LVIS(str(folder / "ground_truth.json"))
        evaluation = LVISEval(ground_truth, LVISResults(ground_truth, results), iou_type)
        evaluation.run()
        figures[iou_type] = {name.removesuffix("@300"): float(v) for name, v in evaluation.results.items()}
        del evaluation, ground_truth
    answer.put((figures, time.perf_counter() - start, status_gb("VmHWM") - before_gb))


class WorkerPeaks:
    """Reads the peak memory of the worker processes while they live.

    Not ``ru_maxrss`` of the children: Linux counts what the parent held at the fork into it.
    """

    def __init__(self):
        self._peaks_gb, self._ended = {}, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def total_gb(self):
        """Stop watching and return the sum of the workers' peaks."""
        self._ended.set()
        self._thread.join()
        return sum(self._peaks_gb.values())

    def _watch(self):
        while not self._ended.wait(0.05):
            for process in multiprocessing.active_children():
                try:
                    self._peaks_gb[process.pid] = status_gb("VmHWM", process.pid)
                except (OSError, KeyError):  # it has just ended
                    continue


def reset_peak_gb():
    """Forget the process's peak memory so far and return what it holds now, in GiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_gb("VmRSS")


def status_gb(key, pid="self"):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 2**20
    raise KeyError(key)


def in_own_process(function, *arguments):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=function, args=(*arguments, answer))
    process.start()
    figures = answer.get()
    process.join()
    return figures


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=None, help="as num_workers of score_results")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, arguments.images, arguments.seed)
        size_gb = (folder / "results.json").stat().st_size / 2**30
        print(f"{arguments.images} images, {NUM_DETECTIONS} detections each, {size_gb:.2f} GiB")
        ours, seconds, peak_gb = in_own_process(run_ours, folder, arguments.workers)
        print(
            f"ours: {seconds:.2f} s, {peak_gb:.2f} GiB beside predictions, segm AP {ours['segm']['AP']:.4f}"
        )
        result = {"speedup": None, "max_abs_difference": None, "peak_gb": round(peak_gb, 3)}
        if not arguments.ours_only:
            theirs, their_seconds, their_gb = in_own_process(run_lvis, folder)
            print(f"lvis: {their_seconds:.2f} s, {their_gb:.2f} GiB, segm AP {theirs['segm']['AP']:.4f}")
            differences = [abs(ours[key][n] - v) for key in IOU_TYPES for n, v in theirs[key].items()]
            result["speedup"] = round(their_seconds / seconds, 2)
            result["max_abs_difference"] = max(differences)
            print(f"ratio: {their_seconds / seconds:.1f}")
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
