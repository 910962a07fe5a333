import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mflight.functional.run_lengths import find_code_faults


def random_codes(count=600):
    draws = np.random.default_rng(0)
    codes, sizes = [], []
    for number in range(count):
        size = draws.integers(1, 90, 2)
        mask = (draws.random(size) < draws.random()).astype(np.uint8)
        if number % 5 == 0:
            mask[:] = number % 2  # one run, or an empty one and the whole
        codes.append(coco_mask.encode(np.asfortranarray(mask))["counts"])
        sizes.append(size)
    return codes, np.array(sizes)


def test_what_pycocotools_encodes_is_a_mask_of_its_size_and_of_no_other():
    codes, sizes = random_codes()
    assert find_code_faults(codes, sizes) == {}
    assert find_code_faults([code.decode() for code in codes], sizes) == {}
    assert len(find_code_faults(codes, sizes + 1)) == len(codes)


def test_each_faulty_code_is_told_apart_from_its_neighbours():
    codes, sizes = random_codes(300)
    codes[7], codes[255], codes[256], codes[299] = b"05", "a\nb", [0, 5], "PP"
    faults = find_code_faults(codes, sizes)
    assert sorted(faults) == [7, 255, 256, 299]
    height, width = sizes[256]
    assert faults[256] == f"its runs cover 5 px and not {height} x {width}"


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ("", "are empty"),
        ([], "are empty"),
        ("b'0120'", "repr of bytes"),
        ('b"0120"', "repr of bytes"),
        ("0120\n", r"hold '\n'"),
        ("é", "which no run-length code has"),
        (b"\xff0", "hold 'ÿ'"),
        ("Z", "end within a number"),
        ("N0", "has a run of -2 px"),
        ("?0", "cover 15 px and not 2 x 2"),
        ("jjjjjjjjjjjjjjjj0", "longer than any image"),
        ([3, -1, 2], ">= 0, got -1"),
        ([1.5, 2.5], "got 1.5"),
        ([True, 3], "got True"),
        (None, "got None"),
        (12, "got 12"),
    ],
)
def test_what_is_no_code_is_named(counts, told):
    assert told in find_code_faults([counts], np.array([[2, 2]]))[0]


def test_an_empty_mask_is_one():
    assert find_code_faults(["4", [4]], np.array([[2, 2], [2, 2]])) == {}
