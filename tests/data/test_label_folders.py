"""Labels of other programs: where images and label files are, and folders that could be several formats."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instseg_d2.apps.convert import convert
from instseg_d2.commands import run
from instseg_d2.data.labels import WRITERS, default_images, recognise
from instseg_d2.errors import DatasetError

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]  # corners, in an image of 8 x 6 pixels
FORMATS = [name for name in WRITERS if name != "label-studio"]


def draw(path, size=(8, 6), color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, color).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def coco(*names, classes=("cat",), **image):
    """A COCO file in which object i, of class i, is a square in image i."""
    return {
        "images": [{"id": i, "file_name": n, "width": 8, "height": 6, **image} for i, n in enumerate(names)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": i % len(classes), "bbox": [2, 1, 4, 3], "area": 12,
             "iscrowd": 0, "segmentation": [SQUARE]}
            for i in range(len(names))
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(classes)],
    }  # fmt: skip


def labelme(image_path):
    points = np.reshape(SQUARE, (-1, 2)).tolist()
    shapes = [{"label": "cat", "points": points, "shape_type": "polygon"}]
    return {"imagePath": image_path, "imageWidth": 8, "imageHeight": 6, "shapes": shapes}


def via(*names):
    shape = {"name": "polygon", "all_points_x": SQUARE[::2], "all_points_y": SQUARE[1::2]}
    regions = [{"shape_attributes": shape, "region_attributes": {"class": "cat"}}]
    return {f"{name}{i}": {"filename": name, "size": i, "regions": regions} for i, name in enumerate(names)}


def objects(path):
    """[(file name, class)] of a COCO file."""
    content = json.loads((path / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    classes = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert all(a["bbox"] == [2, 1, 4, 3] for a in content["annotations"])
    return [(names[a["image_id"]], classes[a["category_id"]]) for a in content["annotations"]]


def test_yolo_labels_are_where_ultralytics_looks(tmp_path):
    """It replaces the last /images/ of an image's whole path, and the suffix."""
    names = [
        "train/images/a.png",
        "b.c.png",
        "images/d.png",
        "x/images/y/images/e.png",
        "my images/f.png",
        "labels/g.png",
    ]
    photos, out = tmp_path / "photos", tmp_path / "images/out"
    for name in names:
        draw(photos / name)
    write(tmp_path / "coco.json", coco(*names, classes=names))
    convert(tmp_path / "coco.json", "yolo", out, images=photos)
    for index, name in enumerate(names):
        assert (out / "images" / name).resolve() == photos / name
        before, _, after = f"{out}/images/{name}".rpartition("/images/")
        label = Path(f"{before}/labels/{after[: after.rindex('.')]}.txt")
        assert label.read_text() == f"{index} 0.25 0.16666667 0.75 0.16666667 0.75 0.66666667 0.25 0.66666667\n"
    assert len(list(out.rglob("*.txt"))) == len(names)
    for number, images in enumerate((None, photos)):
        back = tmp_path / f"back{number}"
        convert(out, "coco", back, images=images)
        assert sorted(objects(back)) == sorted((name, name) for name in names)


def test_relative_paths_of_a_yolo_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set/data.yaml", "names: [cat]")
    write(tmp_path / "set/train/labels/a.txt", "0 0.25 0.16666667 0.75 0.16666667 0.75 0.66666667 0.25 0.66666667")
    draw(tmp_path / "set/train/images/a.png")
    for number, images in enumerate((None, tmp_path / "set", "set/train/images", tmp_path / "set/../set/train/images")):
        convert("set", "coco", f"out{number}", images=images)
        assert [pair[1] for pair in objects(tmp_path / f"out{number}")] == ["cat"]


def test_two_images_of_one_yolo_file(tmp_path):
    write(tmp_path / "x/data.yaml", "names: [cat]")
    write(tmp_path / "x/labels/a.txt", "0 0 0 1 0 1 1")
    for name in ("a.jpg", "a.png"):
        draw(tmp_path / "x/images" / name)
    with pytest.raises(DatasetError, match=r"a\.txt: a\.jpg and a\.png could both be its image"):
        convert(tmp_path / "x", "coco", tmp_path / "out")


@pytest.mark.parametrize("target", WRITERS)
def test_entries_of_one_image_are_merged(tmp_path, target):
    draw(tmp_path / "photos/a.png")
    merged = "entries of an image that is listed before: merged with it: 2 (first: ./a.png)"
    write(tmp_path / "coco.json", coco("a.png", "./a.png", "a.png", classes="xyz"))
    report = convert(tmp_path / "coco.json", target, tmp_path / "there", images=tmp_path / "photos")
    assert report[0] == "read coco labels: 1 images, 3 objects, 3 classes"
    assert merged in report
    if target == "label-studio":
        (task,) = json.loads((tmp_path / "there/tasks.json").read_text())
        assert len(task["predictions"][0]["result"]) == 3
    elif target != "voc":  # the masks lie on each other
        convert(tmp_path / "there", "coco", tmp_path / "back", images=tmp_path / "photos")
        assert objects(tmp_path / "back") == [("a.png", name) for name in "xyz"]


def test_label_files_of_one_image_are_merged(tmp_path):
    draw(tmp_path / "a.png")
    for name in ("a", "a copy"):
        write(tmp_path / f"labelme/{name}.json", labelme("../a.png"))
    write(tmp_path / "via.json", via("a.png", "a.png"))
    for source in ("labelme", "via.json"):
        report = convert(tmp_path / source, "yolo", tmp_path / f"{source}_yolo", images=tmp_path)
        assert report[0].endswith("1 images, 2 objects, 1 classes")
        assert len((tmp_path / f"{source}_yolo/labels/a.txt").read_text().splitlines()) == 2


def test_one_missing_image_of_two_sizes(tmp_path):
    content = coco("a.png", "a.png")
    content["images"][1]["width"] = 9
    write(tmp_path / "coco.json", content)
    with pytest.raises(DatasetError, match=r"a\.png is listed twice, as 8 x 6 and as 9 x 6 pixels; remove one"):
        convert(tmp_path / "coco.json", "yolo", tmp_path / "out")


def shown(folder, output, target="yolo", name="1.png"):
    """The image that a second program finds beside the labels."""
    writer = WRITERS[target](output, [{"id": 1, "name": "cat"}], folder)
    writer.check_names([name])
    writer.add({"file_name": name, "width": 8, "height": 6}, [])
    return output / writer.image_folder / name


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("target", ["yolo", "labelme", "voc"])
def test_earlier_links_are_replaced(tmp_path, monkeypatch, target, links):
    first, second, gone, out = (tmp_path / name for name in ("first", "second", "gone", "out"))
    for color, folder in enumerate((first, second, gone)):
        draw(folder / "1.png", color=color)
    placed = shown(first, out, target)
    if not links:  # as on a file system without links
        monkeypatch.setattr(Path, "symlink_to", lambda *args, **more: (_ for _ in ()).throw(OSError()))
    assert shown(second, out, target) == placed
    assert placed.read_bytes() == (second / "1.png").read_bytes() != (first / "1.png").read_bytes()
    placed.unlink()
    os.symlink(gone / "1.png", placed)
    (gone / "1.png").unlink()
    shown(second, out, target)
    assert placed.read_bytes() == (second / "1.png").read_bytes()
    assert os.listdir(gone) == []
    assert placed.is_symlink() is links


def test_other_pictures_are_not_replaced(tmp_path):
    draw(tmp_path / "photos/1.png", color=1)
    draw(tmp_path / "out/images/1.png", color=2)
    before = (tmp_path / "out/images/1.png").read_bytes()
    with pytest.raises(DatasetError, match=r"is another picture than .*; choose another folder to write to"):
        shown(tmp_path / "photos", tmp_path / "out")
    assert (tmp_path / "out/images/1.png").read_bytes() == before
    (tmp_path / "photos/1.png").write_bytes(before)
    shown(tmp_path / "photos", tmp_path / "out")
    inside = shown(tmp_path / "out/images", tmp_path / "out")  # the images are already there
    assert inside.read_bytes() == before


LINE = "0 0.1 0.1 0.5 0.1 0.5 0.5"
FOLDERS = {
    "LabelMe with its list of classes": ({"a.json": labelme("a.png"), "classes.txt": "cat"}, "labelme"),
    "LabelMe below, with a list of classes": ({"x/a.json": labelme("a.png"), "classes.txt": "cat"}, "labelme"),
    "LabelMe below, with a YAML": ({"x/a.json": labelme("a.png"), "data.yaml": "names: [cat]"}, "labelme"),
    "COCO with a YAML": ({"labels.json": coco("a.png"), "conda.yml": "dependencies: []"}, "coco"),
    "COCO with YOLO's YAML": ({"labels.json": coco("a.png"), "data.yaml": "names: [cat]"}, "coco"),
    "VIA with a YAML": ({"via.json": via("a.png"), "mkdocs.yml": "site_name: x"}, "via"),
    "YOLO": ({"data.yaml": "names: [cat]", "labels/a.txt": LINE}, "yolo"),
    "YOLO without objects": ({"data.yaml": "names: [cat]", "labels/a.txt": ""}, "yolo"),
    "YOLO with other YAML files": ({"a.yaml": "x: 1", "mine.yaml": "names: [cat]", "a.txt": LINE}, "yolo"),
    "YOLO of Label Studio": ({"classes.txt": "cat", "notes.json": {"info": {}}, "labels/a.txt": f"\n{LINE}\n{LINE}"[1:],
                              "notes.txt": "1 2 3 4 5"}, "yolo"),
    "YOLO with a broken JSON file": ({"data.yaml": "names: [cat]", "x.json": "{", "labels/a.txt": LINE}, "yolo"),
    "only a list of classes": ({"classes.txt": "cat", "README.txt": "Our photos."}, None),
    "a YAML of another program": ({"conda.yaml": "dependencies: []"}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_formats_of_folders(tmp_path, case):
    files, expected = FOLDERS[case]
    source = tmp_path / "set"
    draw(source / "a.png")
    for name, content in files.items():
        write(source / name, content)
    if expected is None:
        with pytest.raises(DatasetError, match="is not recognised as labels"):
            recognise(source)
        return
    assert recognise(source)[0] == expected
    report = convert(source, "coco", tmp_path / "out")
    number = 0 if case == "YOLO without objects" else 2 if "Studio" in case else 1
    assert report[0] == f"read {expected} labels: 1 images, {number} objects, 1 classes"


@pytest.mark.parametrize("name", ["coco", "via"])
def test_a_known_format_is_found_in_a_folder(tmp_path, name):
    draw(tmp_path / "a.png")
    for content, file in ((coco("a.png"), "coco.json"), (via("a.png"), "via.json"), ("[]", "other.json")):
        write(tmp_path / file, content)
    report = convert(tmp_path, "coco", tmp_path / "out", source_format=name)
    assert report[0] == f"read {name} labels: 1 images, 1 objects, 1 classes"
    (tmp_path / f"{name}.json").rename(tmp_path / "other.json")
    write(tmp_path / f"{name}.json", (tmp_path / "other.json").read_text())
    with pytest.raises(DatasetError, match="several label files, such as"):
        recognise(tmp_path, name)
    for file in ("other.json", f"{name}.json"):
        (tmp_path / file).unlink()
    with pytest.raises(DatasetError, match=f"no JSON file in this folder has {name} labels"):
        recognise(tmp_path, name)


@pytest.mark.parametrize("labels", [coco, via])
@pytest.mark.parametrize(("listed", "folder"), [("images/a.png", "."), ("a.png", "images"), ("gone.png", "images")])
def test_the_folder_in_which_the_listed_images_are(tmp_path, labels, listed, folder):
    draw(tmp_path / "images/a.png")
    write(tmp_path / "result.json", labels(listed))
    found = default_images(*reversed(recognise(tmp_path / "result.json")))
    assert os.path.normpath(found) == os.path.normpath(tmp_path / folder)


@pytest.mark.parametrize("source", ["coco", "yolo", "labelme", "via", "voc"])
def test_a_file_of_no_format_is_one_sentence(tmp_path, capsys, source):
    """Also where the user says which format it is."""
    write(tmp_path / "x.txt", "no labels")
    assert (
        run("convert", [str(tmp_path / "x.txt"), "--from", source, "--to", "coco", "--output", str(tmp_path / "o")])
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.txt" in line
    assert "no such image folder" not in line


@pytest.mark.parametrize("path", ["..", ".", "", "img/", "a\\..", "/"])
def test_labelme_paths_without_a_file(tmp_path, path):
    write(tmp_path / "x/a.json", labelme(path))
    with pytest.raises(DatasetError, match=r"a\.json: imagePath is .*, which names no image file"):
        convert(tmp_path / "x", "coco", tmp_path / "out")


def test_labelme_image_that_begins_with_dots(tmp_path):
    draw(tmp_path / "x/..a.png")
    write(tmp_path / "x/..a.json", labelme("..a.png"))
    convert(tmp_path / "x", "coco", tmp_path / "out")
    assert objects(tmp_path / "out") == [("..a.png", "cat")]


def test_labelme_image_called_categories(tmp_path):
    """Its labels would be where the ids of the classes are."""
    draw(tmp_path / "x/categories.png")
    write(tmp_path / "x/categories.json", labelme("categories.png"))
    report = convert(tmp_path / "x", "coco", tmp_path / "out")
    assert "classes numbered from 1, since only names are known: 1" in report
    assert objects(tmp_path / "out") == [("categories.png", "cat")]
    for target in FORMATS:
        out = tmp_path / target
        if target == "labelme":
            with pytest.raises(DatasetError, match=r"categories\.png: its label file would replace categories\.json"):
                convert(tmp_path / "x", target, out)
            assert not out.exists()
        else:
            convert(tmp_path / "x", target, out)
            convert(out, "coco", tmp_path / f"{target}_back", images=tmp_path / "x")
            assert objects(tmp_path / f"{target}_back") == [("categories.png", "cat")]


def test_a_label_file_does_not_replace_its_image(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.json")
    with pytest.raises(DatasetError, match=r"a\.json: its label file would replace a\.json"):
        WRITERS["labelme"](tmp_path / "out", [], tmp_path).check_names(["a.json"])


def test_many_images_of_another_size_are_one_line(tmp_path):
    for number in range(3):
        draw(tmp_path / f"x/{number}.png", size=(6, 8))
        write(tmp_path / f"x/{number}.json", labelme(f"{number}.png"))
    with pytest.raises(DatasetError) as error:
        convert(tmp_path / "x", "coco", tmp_path / "out")
    assert str(error.value).endswith(
        "no image with labels; images of another size than their labels say: left out: 3 (first: 0.png)."
    )


@pytest.mark.parametrize("target", FORMATS)
def test_class_names_stay_as_they_are(tmp_path, target):
    """Those that YAML, lists and comments could change."""
    names = [" a", "a ", "a", "background", "yes", "1", "null", "x#y", "a: b"] + ["#1"] * (target != "voc")
    files = [f"{i}.png" for i in range(len(names))]
    for file in files:
        draw(tmp_path / "x" / file)
    write(tmp_path / "x.json", coco(*files, classes=names))
    convert(tmp_path / "x.json", target, tmp_path / "there", images=tmp_path / "x")
    report = convert(tmp_path / "there", "coco", tmp_path / "back", images=tmp_path / "x")
    assert report[0].endswith(f"{len(names)} objects, {len(names)} classes")
    assert sorted(objects(tmp_path / "back")) == list(zip(files, names))


@pytest.mark.parametrize("name", ["#1", " # x", "a\nb", "a\u2028b"])
def test_classes_that_a_label_map_cannot_hold(tmp_path, name):
    with pytest.raises(DatasetError, match="cannot be in VOC's label map"):
        WRITERS["voc"](tmp_path / "out", [{"id": 1, "name": name}], tmp_path)


@pytest.mark.parametrize("name", ["../a.png", ""])
@pytest.mark.parametrize("target", WRITERS)
def test_a_refused_set_leaves_nothing_behind(tmp_path, target, name):
    draw(tmp_path / "a.png")
    write(tmp_path / "coco.json", coco(name))
    with pytest.raises(DatasetError, match="must lead to a file below"):
        convert(tmp_path / "coco.json", target, tmp_path / "out", images=tmp_path)
    assert not (tmp_path / "out").exists()
