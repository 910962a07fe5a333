"""The gallery in a real browser, without a network."""

import dataclasses
import shutil
import subprocess
import sys

import pytest

from mflight import gallery
from mflight.mistakes import MistakeExit
from mflight.synthesis.pool.reader import PoolReader
from mflight.synthesis.pool.writer import PoolWriter
from tests.unit.synthesis.small_pool import fill_pool
from tests.unit.synthesis.squares import make_sample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
EVIL = "<img src=x onerror=alert(1)>"
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (uv sync)")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Requests 0 to 7, of which 3 and 7 are dropped, and one sample with hostile texts."""
    folder = fill_pool(tmp_path_factory.mktemp("gallery") / "pool", 8)
    prompt = {"text": EVIL, "name_span": [0, 3], "definition_span": None}
    hostile = dataclasses.replace(
        make_sample(50, category_id=99), provenance={"request": {"names": [EVIL], "prompts": [prompt]}}
    )
    with PoolWriter(folder, "w1") as writer:
        writer.append(hostile, index=50)
    return folder


@pytest.fixture(scope="module")
def page(pool):
    """The page in the browser; whatever it asks for, says or does wrong is noted in ``page.noted``."""
    file = pool.parent / "gallery.html"
    gallery.main([str(pool), "--output", str(file)])
    assert [path.name for path in pool.parent.iterdir() if path.name.startswith(".")] == []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.noted = []
        page.on("console", lambda message: page.noted.append(message.text))
        page.on("pageerror", lambda error: page.noted.append(str(error)))
        page.on("dialog", lambda dialog: (page.noted.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.noted.append(request.url))
        page.goto(file.as_uri())
        page.noted.remove(file.as_uri())
        yield page
        browser.close()


def visible(page, selector):
    return page.locator(f"{selector} >> visible=true").count()


@needs_chromium
@pytest.mark.slow
def test_masks_are_toggled_for_all_images_and_for_one(page):
    assert visible(page, ".card") == 7
    num_masks = 6 * 3 + 1
    assert visible(page, ".card path") == num_masks
    page.click("#masks")
    assert visible(page, ".card path") == 0
    page.click("#sample-7-00000001 .head button")
    assert visible(page, ".card path") == visible(page, "#sample-7-00000001 path") == 3
    page.click("#masks")
    assert visible(page, ".card path") == num_masks
    page.click("#sample-7-00000001 .head button")
    assert visible(page, ".card path") == num_masks - 3
    page.click("#sample-7-00000001 .head button")


@needs_chromium
@pytest.mark.slow
def test_masks_and_images_lie_on_each_other(page, pool):
    reader = PoolReader(pool)
    sample = reader.read(reader.poll()[0])
    assert (
        page.evaluate("Promise.all([...document.images].map((i) => i.decode())).then((all) => all.length)")
        == 7
    )
    picture = page.locator("#sample-7-00000000 img").bounding_box()
    scale = picture["width"] / sample.image.shape[1]
    assert picture["height"] == pytest.approx(scale * sample.image.shape[0], abs=1)
    for index, annotation in enumerate(sample.annotations):
        x, y, width, height = (scale * side for side in annotation["bbox"])
        shown = page.locator("#sample-7-00000000 path").nth(index).bounding_box()
        expected = {"x": picture["x"] + x, "y": picture["y"] + y, "width": width, "height": height}
        assert shown == pytest.approx(expected, abs=3)  # the stroke is part of a shape's box


@needs_chromium
@pytest.mark.slow
def test_the_class_filter_shows_the_images_of_a_class(page, pool):
    reader = PoolReader(pool)
    samples = [reader.read(ref) for ref in reader.poll()]
    wanted = samples[0].annotations[0]["category_id"]
    with_it = {s.sample_id for s in samples if wanted in {region["category_id"] for region in s.regions}}
    assert 0 < len(with_it) < len(samples)
    for choose in (
        lambda: page.select_option("#class", str(wanted)),
        lambda: page.click(f'[data-class="{wanted}"]'),
    ):
        choose()
        ids = page.locator(".card >> visible=true").evaluate_all("cards => cards.map((card) => card.id)")
        assert {name.removeprefix("sample-") for name in ids} == with_it
        assert page.inner_text("#shown") == f"{len(with_it)} of 7 images"
        page.select_option("#class", "")
        assert visible(page, ".card") == 7
    page.select_option("#verdict", "good")
    assert visible(page, ".card") == 1
    page.select_option("#verdict", "")


@needs_chromium
@pytest.mark.slow
def test_verdicts_prompts_and_counts_are_told(page):
    card = page.locator("#sample-7-00000000 .region")
    assert card.locator(".badge").all_inner_texts() == ["area", "kept", "kept", "kept"]
    assert all(text.startswith("a photo of a single") for text in card.locator("p").all_inner_texts())
    assert page.locator('[data-rule="area"] td').all_inner_texts() == ["area", "14", "42 %"]
    assert visible(page, ".card rect") == 0
    page.click("#boxes")
    assert visible(page, ".card rect") == 6 * 4 + 1
    page.click("#boxes")


@needs_chromium
@pytest.mark.slow
def test_hostile_texts_stay_texts_and_nothing_is_asked_of_the_network(page):
    assert page.locator("#sample-7-00000050 p").text_content() == EVIL
    assert page.locator("img").count() == 7
    assert [note for note in page.noted if not note.startswith("data:")] == []


def test_the_command_says_what_is_wrong_and_leaves_nothing(tmp_path):
    with pytest.raises(MistakeExit, match=r"is no pool: it has no pool\.db"):
        gallery.main([str(tmp_path), "--output", str(tmp_path / "page.html")])
    command = [sys.executable, "-m", "mflight.gallery", "x", "--output", str(tmp_path / "none/page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "output must lie in an existing folder" in done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
