"""Whether run-length codes are masks: pycocotools trusts them, and hangs where they are none."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

_MAX_DIGITS = 7  # of base 32: more than any run of an image has
_AT_ONCE = 255  # pycocotools 2.0.11 with numpy 2 raises OverflowError for more
_BLOCK = 256  # texts that are checked at a time, so that their runs stay in the processor's cache


def find_code_faults(counts: Sequence[Any], sizes_hw: np.ndarray) -> dict[int, str]:
    """Say of each run-length code that is no mask of its image what is wrong with it.

    Args:
        counts: ``N`` codes: COCO's compressed text as ``str`` or ``bytes``, or plain lists of runs.
        sizes_hw: int64[N, 2], the sizes of their images in pixels.

    Returns:
        A clause by position, such as ``its runs cover 576 px and not 96 x 128``; empty if all are masks.

    Example:
        >>> find_code_faults(["0120", [2, 1]], np.array([[2, 2], [2, 2]]))
        {1: 'its runs cover 3 px and not 2 x 2'}
    """
    faults: dict[int, str] = {}
    places, texts = [], []
    for index, each in enumerate(counts):
        if isinstance(each, list):
            fault = _list_fault(each, sizes_hw[index])
        else:
            text = each.encode() if isinstance(each, str) else each
            fault = _form_fault(text)
            if not fault:
                places.append(index)
                texts.append(text)
        if fault:
            faults[index] = fault
    whole_px = sizes_hw[places].prod(axis=1)
    for start in range(0, len(texts), _BLOCK):
        block = slice(start, start + _BLOCK)
        for number, fault in _text_faults(texts[block], whole_px[block]).items():
            height, width = sizes_hw[places[start + number]].tolist()
            faults[places[start + number]] = (
                f"{fault} and not {height} x {width}" if "cover" in fault else fault
            )
    return faults


def compress_code(counts: Any, size_hw: Sequence[int]) -> dict[str, Any]:
    """Return a code as pycocotools takes it.

    Args:
        counts: compressed text as ``str`` or ``bytes``, or a plain list of runs.
        size_hw: ``(H, W)`` of the mask in pixels.

    Returns:
        ``size`` and compressed ``counts``.
    """
    size = list(size_hw)
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
    return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}


def measure_codes(codes: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return float64[N] areas in px and float64[N, 4] boxes as x, y, width, height of compressed codes."""
    parts = [list(codes[start : start + _AT_ONCE]) for start in range(0, len(codes), _AT_ONCE)]
    areas = [coco_mask.area(part).astype(np.float64) for part in parts]
    boxes = [coco_mask.toBbox(part) for part in parts]
    return np.concatenate([np.zeros(0), *areas]), np.concatenate([np.zeros((0, 4)), *boxes])


def _form_fault(text: Any) -> str:
    if not isinstance(text, bytes):
        return f"its counts must be text or a list of runs, got {text!r}"
    if not text:
        return "its counts are empty"
    if text[:2] in (b"b'", b'b"'):
        shown = text[:12].decode(errors="replace")
        return f"its counts are the repr of bytes, {shown}...: write counts.decode() instead"
    return ""


def _list_fault(runs: list[Any], size_hw: np.ndarray) -> str:
    if not runs:
        return "its counts are empty"
    odd = next(
        (run for run in runs if type(run) not in (int, float) or not (run >= 0 and run % 1 == 0)), None
    )
    if odd is not None:
        return f"its runs must be whole numbers >= 0, got {odd!r}"
    height, width = size_hw.tolist()
    total = int(sum(runs))
    return "" if total == height * width else f"its runs cover {total} px and not {height} x {width}"


def _text_faults(texts: list[bytes], whole_px: np.ndarray) -> dict[int, str]:
    """Check compressed texts all at once; see ``mflight.functional.masks`` for how a text holds runs."""
    digits = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(ord("0"))  # below "0" they wrap round
    lengths = np.array([len(text) for text in texts])
    last = np.cumsum(lengths) - 1
    faults: dict[int, str] = {}
    for place in np.flatnonzero(digits > 63).tolist():
        number = int(np.searchsorted(last, place))
        character = chr((int(digits[place]) + ord("0")) % 256)
        faults.setdefault(number, f"its counts hold {character!r}, which no run-length code has")
    is_end = digits & 32 == 0
    for number in np.flatnonzero(~is_end[last]).tolist():
        faults.setdefault(number, "its counts end within a number")
    is_end[last] = True
    num_runs = np.add.reduceat(is_end, last - lengths + 1, dtype=np.int64)
    runs, is_long = _read_numbers(digits, np.flatnonzero(is_end))
    for number in np.searchsorted(np.cumsum(num_runs), np.flatnonzero(is_long), side="right").tolist():
        faults.setdefault(number, "its counts hold a run longer than any image")
    least, totals = _sum_runs(runs, num_runs)
    for number in np.flatnonzero((least < 0) | (totals != whole_px)).tolist():
        told = (
            f"it has a run of {least[number]} px"
            if least[number] < 0
            else f"its runs cover {totals[number]} px"
        )
        faults.setdefault(number, told)
    return faults


def _read_numbers(digits: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64[R] numbers, given where each ends, and bool[R]: has too many digits to be read."""
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    num_digits = ends - starts + 1
    numbers = (digits[ends] & 31).astype(np.int64)
    numbers -= (numbers & 16) << 1  # the last digit holds the sign
    for place in range(1, min(int(num_digits.max()), _MAX_DIGITS)):
        longer = np.flatnonzero(num_digits > place)
        numbers[longer] = (numbers[longer] << 5) | (digits[ends[longer] - place] & 31)
    return numbers, num_digits > _MAX_DIGITS


def _sum_runs(runs: np.ndarray, num_runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shortest run and the sum of the runs of each text, both int64[T]; changes ``runs``."""
    first = np.cumsum(num_runs) - num_runs
    is_odd = (np.arange(len(runs)) - np.repeat(first, num_runs)) & 1 == 1
    is_even = ~is_odd
    is_even[first] = False  # from the fourth run on, a number is the difference to the run before the last
    for chain, counts in ((is_odd, num_runs // 2), (is_even, (num_runs - 1) // 2)):
        sums = np.cumsum(runs[chain])
        before = np.concatenate(([0], sums))[np.cumsum(counts) - counts]
        runs[chain] = sums - np.repeat(before, counts)
    return np.minimum.reduceat(runs, first), np.add.reduceat(runs, first)
