"""Missing images: check_data and training report the usual reasons."""

import unicodedata

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from instseg_d2.commands import run
from instseg_d2.data import check_images
from instseg_d2.data.missing import near_misses
from instseg_d2.errors import DatasetError
from tests.coco_sets import rectangles, write_set

NFC, NFD = (unicodedata.normalize(form, "Würfel.png") for form in ("NFC", "NFD"))
CASES = [
    # listed, there, the reason
    ("train\\a.png", "train/a.png", "with / instead of \\"),
    ("train\\day 1\\a.png", "train/day 1/a.png", "with / instead of \\"),
    ("my%20image.png", "my image.png", "with %20 and the like decoded"),
    ("caf%C3%A9.png", "café.png", "with %20 and the like decoded"),
    (" a.png", "a.png", "without spaces around the name"),
    ("a.png\n", "a.png", "without spaces around the name"),
    (NFC, NFD, "in another Unicode form (NFC, NFD)"),
    (NFD, NFC, "in another Unicode form (NFC, NFD)"),
    ("A.PNG", "a.png", "with other capital letters"),
    ("img_1.JPG", "img_1.jpg", "with other capital letters"),
    ("Train\\A%201.PNG", "train/a 1.png", "written a little differently"),
    ("a.jpg", "a.png", "with another suffix"),
    ("a", "a.png", "with another suffix"),
    ("train/a.jpeg", "train/a.jpg", "with another suffix"),
    ("images/a.png", "a.png", "in another folder"),
    ("a.png", "train/a.png", "in another folder"),
    ("old/a.png", "new/2024/a.png", "in another folder"),
    ("/home/somebody/data/a.png", "a.png", "in another folder"),
    ("C:\\data\\a.png", "a.png", "in another folder"),
    ("file:///data/a.png", "a.png", "in another folder"),
    ("images/a.jpg", "a.png", "in another folder and with another suffix"),
]


def place(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (96, 64)).save(path, format="PNG")


@pytest.mark.parametrize(("listed", "there", "reason"), CASES)
def test_usual_reasons(tmp_path, listed, there, reason):
    place(tmp_path, there)
    place(tmp_path, "unrelated.png")
    assert near_misses([listed, "x.png"], str(tmp_path)) == [(reason, 1, f"{listed} -> {there}")]


@pytest.mark.parametrize("listed", ["b.png", "c/b.png", "%zz.png", "", "..", "a.png.txt"])
def test_no_reason(tmp_path, listed):
    place(tmp_path, "a.png")
    (tmp_path / "b.txt").write_text("no image")
    assert near_misses([listed], str(tmp_path)) == []


def test_two_that_could_be_meant(tmp_path):
    place(tmp_path, "x/a.png")
    place(tmp_path, "y/a.png")
    place(tmp_path, "x/b.png")
    assert near_misses(["a.png", "b.png"], str(tmp_path)) == [("in another folder", 1, "b.png -> x/b.png")]


def test_an_empty_folder(tmp_path):
    assert near_misses(["a.png"], str(tmp_path)) == []


@pytest.mark.parametrize("training", [True, False])
def test_what_is_said(registered, tmp_path, capsys, training):
    def change(content):
        for image in content["images"][:4]:
            image["file_name"] = f"train\\{image['file_name']}"
        content["images"][4]["file_name"] = "lost.png"
        content["images"][5]["file_name"] = "5.JPG"

    files = write_set(tmp_path, rectangles(7), change)
    (tmp_path / "images" / "train").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").rename(tmp_path / "images" / "train" / f"{number}.png")
    name = registered("missing", *files)
    with pytest.raises(DatasetError) as caught:
        check_images(name, training=training)
    assert str(caught.value) == (
        f"6 of 7 images of missing are missing in {files[1]}, the first is train\\0.png; 4 would be found with / "
        "instead of \\ (train\\0.png -> train/0.png); 1 would be found with another suffix (5.JPG -> 5.png)."
    )
    assert run("check", list(files)) == 1
    text = capsys.readouterr().out
    assert "images: missing, but there with / instead of \\" in text
    assert "train\\0.png -> train/0.png" in text
    assert DatasetCatalog.get(name)  # it can be loaded all the same


def nothing(content):
    content["annotations"].clear()


def crowds(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def no_masks(content):
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1, 1, 2, 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nothing, "the training set useless has no object to train on: there are no annotations"),
        (crowds, r"ann\.json: annotations: none can be used \(3 crowds, 0 dropped\)"),
        (no_masks, r"none can be used \(0 crowds, 3 dropped\), 3 x polygon with fewer than 3 points"),
    ],
)
def test_training_needs_an_object(registered, tmp_path, change, message):
    name = registered("useless", *write_set(tmp_path, rectangles(3), change))
    with pytest.raises(DatasetError, match=message):
        check_images(name, training=True)


def test_a_set_of_others_with_crowds_alone(tmp_path):
    place(tmp_path, "a.png")
    records = [{"file_name": str(tmp_path / "a.png"), "annotations": [{"iscrowd": 1}, {"iscrowd": 1}]}]
    DatasetCatalog.register("toy_crowds", lambda: records)
    try:
        with pytest.raises(DatasetError, match=r"toy_crowds has no object to train on: all 2 are crowds"):
            check_images("toy_crowds", training=True)
        check_images("toy_crowds", training=False)
    finally:
        DatasetCatalog.remove("toy_crowds")
