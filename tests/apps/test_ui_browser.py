"""
The page in a headless Chromium. One test, so that it needs one browser and one server however tests are distributed.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instseg_d2.apps.ui.dataset import DataSet
from instseg_d2.apps.ui.models import Models
from instseg_d2.data import register_coco
from instseg_d2.errors import ConfigError
from tests.apps.spots_set import write_spots_set
from tests.bright_spots import CLASS_NAMES, BrightSpots, save_checkpoint, spots_clip, spots_config, spots_image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

PIXELS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return [canvas.height, canvas.width, [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
}"""
RED, BLUE = np.s_[12:28, 12:38], np.s_[48:53, 54:66]  # inside the spots, beside tags


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Models, pictures, a data set; the current folder is that of the models."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    models = tmp_path / "models"
    models.mkdir()
    save_checkpoint(models / "spots.pth", spots_config(), CLASS_NAMES)
    save_checkpoint(models / "cars.pth", spots_config(explains=False), ["car", "lorry"])
    (models / "broken.pth").write_bytes(b"no checkpoint")
    (models / os.fsdecode(b"\xff.pth")).write_bytes(b"no checkpoint")
    Image.fromarray(spots_image()).save(tmp_path / "spots.png")
    Image.fromarray(spots_image()[::-1]).save(tmp_path / "mirrored.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(bytes(2**20 + 1))
    spots_clip(tmp_path / "clip")
    path, images = write_spots_set(tmp_path / "set")
    register_coco("browsed_spots", path, images)
    monkeypatch.chdir(models)
    yield tmp_path
    DatasetCatalog.remove("browsed_spots")
    MetadataCatalog.pop("browsed_spots")


@pytest.fixture
def address(files):
    from instseg_d2.apps.ui.server import build, start

    for host, port in (("127.0.0.1", 70000), ("203.0.113.1", 0)):
        with pytest.raises(ConfigError, match="--port"):
            start(None, host, port, max_upload_mb=1)
    models = Models([str(files / "models")], weights=str(files / "models/spots.pth"))
    page = build(models, [DataSet("browsed_spots", "spots of the test")])
    address = start(page, "127.0.0.1", 0, max_upload_mb=1)
    with pytest.raises(ConfigError, match="in use"):
        start(None, "127.0.0.1", int(address.rsplit(":", 1)[1]), max_upload_mb=1)
    yield address
    page.close(verbose=False)


@pytest.fixture
def page(address):
    """The page, and in ``page.hosts`` every host that it asked for something."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(20_000)
        page.hosts = set()
        page.on("request", lambda request: page.hosts.add(urllib.parse.urlsplit(request.url).netloc))
        page.goto(address)
        yield page
        browser.close()


def upload(page, *paths):
    # Not a click at its place: after a refused file it may lie below the area for dropping files, or vanish.
    clear = "#files button[aria-label='Clear']"
    page.evaluate("selector => document.querySelectorAll(selector).forEach(button => button.click())", clear)
    page.locator("#files input[type=file]").set_input_files([str(path) for path in paths])


def wait(page, selector, text):
    page.locator(selector).filter(has_text=text).first.wait_for()


def message(page, *texts):
    """Wait for messages, and close them, since they lie over the page."""
    for text in texts:
        wait(page, ".toast-body", text)
    page.evaluate("document.querySelectorAll('.toast-close').forEach(button => button.click())")


def changed(page):
    """How much each pixel of the shown picture differs from the uploaded one (60, 80)."""
    height, width, data = page.locator("#picture img").evaluate(PIXELS)
    pixels = np.array(data).reshape(height, width, 4)[..., :3]
    return np.abs(pixels - spots_image()).max(-1)


def choose(page, selector, option):
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def downloaded(page, selector):
    with page.expect_download() as download:
        page.locator(selector).click()
    return download.value.suggested_filename, open(download.value.path(), "rb").read()


def test_the_page(page, files, address, monkeypatch):
    runs = []
    forward = BrightSpots.forward
    monkeypatch.setattr(BrightSpots, "forward", lambda self, inputs: runs.append(1) or forward(self, inputs))
    predict(page, files, runs)
    messages(page, files)
    data_set(page, monkeypatch)
    other_files_stay_closed(files, address)
    assert page.hosts == {urllib.parse.urlsplit(address).netloc}
    without_data(page, files)


def predict(page, files, runs):
    upload(page, files / "spots.png")
    wait(page, "#summary", "1 object: 1 red spot")
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth === 80")
    assert changed(page)[RED].min() > 30
    assert changed(page)[BLUE].max() < 25

    page.locator("#threshold input[type=number]").fill("0.3")
    page.locator("#threshold input[type=number]").press("Tab")
    wait(page, "#summary", "2 objects")
    page.wait_for_function(
        """([y, x, pixels]) => {
            const image = document.querySelector('#picture img');
            if (!image || !image.complete || !image.naturalWidth) return false;
            const [height, width, data] = eval(pixels)(image);
            return data[4 * (y * width + x) + 1] > 40;
        }""",
        arg=[50, 60, PIXELS],
    )  # the blue spot becomes greenish
    assert changed(page)[BLUE].min() > 30
    choose(page, "#classes", "blue spot")
    wait(page, "#summary", "1 object: 1 blue spot")
    assert len(runs) == 1  # drawn again, not detected again

    name, data = downloaded(page, "#save-results")
    assert name == "results.json"
    assert [(r["category_name"], r["bbox"], r["file_name"]) for r in json.loads(data)] == [
        ("blue spot", [50, 40, 20, 15], "spots.png")
    ]
    name, data = downloaded(page, "#save-picture")
    assert name == "spots.jpg"
    assert data[:2] == b"\xff\xd8"
    page.get_by_role("tab", name="Table").click()
    wait(page, "#table", "blue spot")
    page.get_by_role("tab", name="Explain").click()
    wait(page, "#panels", "red 3")
    page.get_by_role("tab", name="Picture").click()

    clip = next(files.glob("clip.*"))
    upload(page, files / "mirrored.png", clip)
    wait(page, "#summary", "mirrored.png")
    page.locator("#thumbnails button img").nth(1).click()
    wait(page, "#summary", "6 frames")
    page.wait_for_function("document.querySelector('#video video')?.videoWidth === 80")


def messages(page, files):
    upload(page, files / "large.png")
    message(page, "exceed the maximum allowed size of 1.0 Mb")
    upload(page, files / "broken.jpg", files / "empty.mp4", files / "set/spots.json", files / "spots.png")
    message(page, "broken.jpg cannot be read as an image", "empty.mp4: this video has no readable frame", "spots.json")
    wait(page, "#summary", "spots.png")  # the others are shown
    choose(page, "#model", "broken.pth")
    message(page, "broken.pth")
    wait(page, "#summary", "Drop photos")
    choose(page, "#model", "\ufffd.pth")
    message(page, "\ufffd.pth")
    choose(page, "#model", "cars.pth")
    wait(page, "#summary", "1 car")
    page.get_by_role("tab", name="Explain").click()
    wait(page, "#note", "Nothing to explain")


def data_set(page, monkeypatch):
    page.get_by_role("tab", name="Data set").click()
    wait(page, "#data-summary", "3 images, 6 objects, 2 classes")
    wait(page, "#annotated", "2.png: 2 objects")
    page.get_by_role("tab", name="Faults").click()
    page.locator("#check").click()
    wait(page, "#faults", "same picture under two names")
    monkeypatch.setattr(DataSet, "faults", lambda self: 1 / 0)
    page.locator("#check").click()
    message(page, "This failed: division by zero. The terminal shows more.")
    page.get_by_role("tab", name="Mistakes").click()
    choose(page, "#judged", "cars.pth")
    page.locator("#run").click()
    message(page, "only the model has 'car', 'lorry'")
    choose(page, "#judged", "spots.pth")
    page.locator("#run").click()
    wait(page, "#kind", "all (6)")
    page.locator("#kind label").filter(has_text="missed").click()
    wait(page, "#mistakes", "missed red spot · 1.00")
    from playwright.sync_api import TimeoutError

    pair = page.locator("#pair").filter(has_text="annotated").first
    for _ in range(5):  # a click while the gallery is drawn anew is lost
        page.locator("#mistakes button img").first.click()
        with contextlib.suppress(TimeoutError):
            pair.wait_for(timeout=4000)
            break
    assert pair.is_visible()


def other_files_stay_closed(files, address):
    secrets = [files / "models/spots.pth", files / "set/spots.json", files / "temporary/../spots.png", "/etc/passwd"]
    for secret in (*secrets, "spots.pth", "../spots.png"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={urllib.parse.quote(str(secret))}")
        assert refused.value.code in (403, 404), secret
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n'
    for size, accepted in ((2**20 - 1, True), (2**20 + 1, False)):
        request = urllib.request.Request(
            f"{address}/gradio_api/upload",
            data=body % bytes(size),
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        )
        if accepted:
            assert urllib.request.urlopen(request).status == 200
        else:
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert refused.value.code == 413


def without_data(page, files):
    """Another page, as `instseg ui` alone serves it."""
    from instseg_d2.apps.ui.server import build, start

    alone = build(Models([str(files / "models")], weights=str(files / "models/spots.pth")))
    page.goto(start(alone, "127.0.0.1", 0, max_upload_mb=1))
    upload(page, files / "spots.png")
    wait(page, "#summary", "1 object: 1 red spot")
    page.get_by_role("tab", name="Data set").click()
    page.get_by_text("to see a data set here").wait_for()
    alone.close(verbose=False)
