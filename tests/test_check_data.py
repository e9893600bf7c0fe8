"""``python -m instseg_d2.check_data``: every kind of fault is found, counted and repaired; valid files pass."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instseg_d2.commands import run
from instseg_d2.data.coco_check import examine
from instseg_d2.data.shapes.instances import make_shapes

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def image(folder, name, size=(64, 48), color=0):
    Image.new("RGB", size, (color, 9, 9)).save(folder / name)
    return {"file_name": name, "width": size[0], "height": size[1]}


def faults_of(report):
    return {row.what: (row.count, row.remedy) for row in report.findings}


def training_content(json_file, images):
    """The content that training reads, for which it must log nothing but notes and warnings."""
    report = examine(json_file, images, clean=False)
    assert {row.severity for row in report.findings} <= {"note", "warning"}
    return report.content


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path


def write(folder, content, name="train"):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path), str(folder / "images")


def test_sound_file(tmp_path, capsys):
    json_file = make_shapes(tmp_path, "train", 12, seed=0)
    assert run("check", [str(json_file), str(tmp_path / "images")]) == 0
    text = capsys.readouterr().out
    assert "12 images" in text
    assert "6 categories" in text
    assert not list(tmp_path.glob("*.clean.json"))


def faulty(folder):
    """A file with every fault once, and image 1 with two valid objects."""
    images = folder / "images"
    listed = [{"id": i, **image(images, f"{i}.png", color=i)} for i in (1, 2, 3)]
    listed[1]["width"] = 60  # 2: another size
    (images / "4.png").write_bytes((images / "1.png").read_bytes()[:60])
    listed.append({"id": 4, "file_name": "4.png", "width": 64, "height": 48})
    listed.append({"id": 5, "file_name": "5.png", "width": 64, "height": 48})  # no such file
    listed.append({"id": 6, "file_name": "1.png", "width": 64, "height": 48})  # listed twice
    shutil.copy(images / "1.png", images / "7.png")
    listed.append({"id": 7, "file_name": "7.png"})  # same picture, no size
    listed += [{"id": 1, "file_name": "3.png"}, {"file_name": "8.png"}]
    base = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    objects = [
        {**base, "segmentation": SQUARE},
        {**base, "segmentation": SQUARE},  # again
        {**base, "image_id": 6, "segmentation": [[1, 1, 9, 1, 9, 9]], "bbox": [1, 1, 8, 8], "area": 900},
        {**base, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "bbox": [30, 30, 9, 9], "area": 64},
        {**base, "segmentation": [[1, 1, 9, 1]]},
        {**base, "segmentation": [[100, 1, 109, 1, 109, 9]]},
        {**base, "segmentation": [[50, 20, 90, 20, 90, 40, 50, 40]], "bbox": [50, 20, 14, 20], "area": 280},
        {**base, "segmentation": {"size": [9, 9], "counts": [40, 41]}},
        {**base, "segmentation": SQUARE, "category_id": 9},
        {**base, "segmentation": SQUARE, "image_id": 99},
        {**base, "segmentation": SQUARE, "image_id": 2},
        {**base},
        {"image_id": 7, "category_id": 1, "segmentation": SQUARE},
        {"category_id": 1},
    ]
    for number, annotation in enumerate(objects):
        annotation["id"] = number
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}, {"id": 2, "name": "c"}, {"id": None, "name": "d"}]
    return {"images": listed, "annotations": objects, "categories": categories}


def test_every_fault_is_found_and_repaired(folder, capsys):
    json_file, images = write(folder, faulty(folder))
    report = examine(json_file, images)
    assert faults_of(report) == {
        "categories: duplicate id": (1, "dropped"),
        "categories: id that is neither number nor text": (1, "dropped"),
        "categories: duplicate name": (1, "kept"),
        "categories: no object, so neither trained on nor evaluated": (1, "kept"),
        "images: duplicate id": (1, "dropped"),
        "images: no id": (1, "dropped"),
        "images: file of another size than listed": (1, "dropped"),
        "images: corrupt file": (1, "dropped"),
        "images: missing file": (1, "dropped"),
        "images: file listed twice": (1, "repaired"),
        "images: no width and height": (1, "repaired"),
        "images: same picture under two names": (1, "kept"),
        "images: no object": (1, "kept"),
        "annotations: no image_id": (1, "dropped"),
        "annotations: object annotated twice": (1, "dropped"),
        "annotations: area that disagrees with the mask": (1, "repaired"),
        "annotations: box that disagrees with the mask": (1, "repaired"),
        "annotations: polygon with fewer than 3 points": (1, "dropped"),
        "annotations: polygon outside the image": (1, "dropped"),
        "annotations: polygon partly outside the image": (1, "kept"),
        "annotations: RLE of another size than the image": (1, "dropped"),
        "annotations: unknown category": (1, "dropped"),
        "annotations: unknown image": (1, "dropped"),
        "annotations: of a dropped image": (1, "dropped"),
        "annotations: annotation without a mask": (1, "dropped"),
        "annotations: no usable area, box or crowd flag": (1, "repaired"),
        "annotations: ids missing, repeated or below 1": (1, "repaired"),
    }
    before = Path(json_file).read_text()
    assert run("check", [json_file, images, "--fix"]) == 1
    assert Path(json_file).read_text() == before
    text = capsys.readouterr().out
    assert "annotations: object annotated twice" in text
    clean = str(folder / "train.clean.json")
    content = json.loads(Path(clean).read_text())
    assert [x["id"] for x in content["images"]] == [1, 3, 7]
    assert [x["image_id"] for x in content["annotations"]] == [1, 1, 1, 1, 7]
    triangle, square = content["annotations"][1:3]
    assert triangle["area"] == 28  # pixels below the diagonal of 8 x 8
    assert square["bbox"] == [1, 1, 8, 8]
    assert run("check", [clean, images]) == 1  # two categories of one name are left to look at
    assert {row.severity for row in examine(clean, images).findings} == {"warning", "note"}
    assert training_content(clean, images) == content


BROKEN = {"size": [48, 64], "counts": [5, 5]}
BAR = {"size": [48, 64], "counts": [48 * 10, 48 * 5, 48 * 49]}  # columns 10 to 14
NO_PIXEL = {"size": [48, 64], "counts": [48 * 64]}
NAN, INFINITY = float("nan"), float("inf")


def with_object(folder, masks=True, categories=(), **values):
    """A valid file of one image, except for an object with changed values: annotation 2."""
    square = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    other = {**square, "bbox": [40, 20, 10, 5], "area": 50}
    if masks:
        square["segmentation"] = SQUARE
        other["segmentation"] = [[40, 20, 50, 20, 50, 25, 40, 25]]
    other.update(values)
    content = {
        "images": [{"id": 1, **image(folder / "images", "1.png")}],
        "annotations": [{"id": 1, **square}, {"id": 2, **other}],
        "categories": [{"id": 1, "name": "a"}, *categories],
    }
    return write(folder, content)


def cleaned(json_file, images):
    """The faults, and the clean copy, which must have none."""
    report = examine(json_file, images)
    assert run("check", [json_file, images, "--fix"]) == int(any(row.severity != "note" for row in report.findings))
    clean = json_file.replace(".json", ".clean.json")
    content = json.loads(Path(clean).read_text())
    assert {row.severity for row in examine(clean, images).findings} <= {"note"}
    assert run("check", [clean, images, "--fix"]) == 0
    assert json.loads(Path(clean.replace(".json", ".clean.json")).read_text()) == content
    assert training_content(clean, images) == content
    return faults_of(report), content


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"segmentation": BROKEN}, "broken RLE"),
        ({"segmentation": {"size": [48, 64], "counts": "zzzz"}}, "broken RLE"),
        ({"segmentation": {"size": [48, 64], "counts": [10**400, 5]}}, "broken RLE"),
        ({"segmentation": {"size": [48, 64], "counts": [INFINITY]}}, "mask that is neither polygon nor RLE"),
        ({"segmentation": {"size": [9, 9], "counts": [40, 41]}}, "RLE of another size than the image"),
        ({"segmentation": NO_PIXEL}, "empty RLE"),
        ({"segmentation": [[1, 1, 4, NAN, 8, 8]]}, "polygon with a coordinate that is not a number"),
        ({"segmentation": [[1, 1, 4, "4", 8, 8]]}, "polygon with a coordinate that is not a number"),
        ({"segmentation": [[1, 1, 4, 10**400, 8, 8]]}, "polygon with a coordinate that is not a number"),
        ({"segmentation": [[1, 1, 4, 1e9, 8, 8]]}, "polygon with a coordinate beyond 100000"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9]]}, "polygon without area"),
        ({"segmentation": [[1, 1, 9, 1, 5, 1]], "area": 9}, "polygon without area"),
        ({"segmentation": [[1, 1, 9, 1, 5, 1]], "bbox": [1, 1, 8, 0]}, "polygon without area"),
        ({"iscrowd": "no"}, "crowd flag that is neither 0 nor 1"),
        ({"masks": False, "bbox": [40, 20, 0, 5]}, "box without area"),
        ({"masks": False, "bbox": [40, 20, NAN, 5]}, "box without area"),
        ({"masks": False, "bbox": [70, 20, 9, 5]}, "box outside the image"),
        ({"masks": False, "bbox": [40, 20, 10**400, 5]}, "box that is not 4 numbers"),
        ({"masks": False, "bbox": ["40", "20", "10", "5"]}, "box that is not 4 numbers"),
        ({"masks": False, "bbox": []}, "annotation with neither box nor mask"),
    ],
)
def test_objects_that_are_dropped(folder, values, fault):
    faults, content = cleaned(*with_object(folder, **values))
    assert faults == {f"annotations: {fault}": (1, "dropped")}
    assert [x["id"] for x in content["annotations"]] == [1]


AREA, BOX = "area that disagrees with the mask", "box that disagrees with the mask"
MISSING = "no usable area, box or crowd flag"
OVER_BORDER = [[60, 40, 70, 40, 70, 60, 60, 60]]  # of its 10 x 20 pixels, 4 x 8 are in the image
TWICE = [[40, 20, 50, 20, 50, 25, 40, 25]] * 2


@pytest.mark.parametrize(
    ("values", "faults", "box", "area"),
    [
        ({"area": 90}, [AREA], [40, 20, 10, 5], 50),
        ({"segmentation": TWICE}, [], [40, 20, 10, 5], 50),
        ({"segmentation": TWICE, "area": 100}, [AREA], [40, 20, 10, 5], 50),
        ({"segmentation": OVER_BORDER, "bbox": [60, 40, 4, 8], "area": 32}, [], [60, 40, 4, 8], 32),
        ({"segmentation": OVER_BORDER, "bbox": [60, 40, 4, 8], "area": 200}, [AREA], [60, 40, 4, 8], 32),
        ({"segmentation": OVER_BORDER, "bbox": [60, 40, 10, 20], "area": 32}, [BOX], [60, 40, 4, 8], 32),
        ({"segmentation": BAR, "bbox": [10, 0, 5, 48], "area": 10}, [AREA], [10, 0, 5, 48], 240),
        ({"bbox": [40, 20, 0, 5]}, [MISSING], [40, 20, 10, 5], 50),
        ({"bbox": [70, 20, 9, 5]}, [MISSING], [40, 20, 10, 5], 50),
        ({"bbox": [40, 20, 10]}, [MISSING], [40, 20, 10, 5], 50),
        ({"bbox": ["40", "20", "10", "5"]}, [MISSING], [40, 20, 10, 5], 50),
        ({"segmentation": BAR, "bbox": [10**400] * 4, "area": None}, [MISSING], [10, 0, 5, 48], 240),
        ({"area": -5}, [MISSING], [40, 20, 10, 5], 50),
        ({"area": "x"}, [MISSING], [40, 20, 10, 5], 50),
        ({"area": NAN}, [MISSING], [40, 20, 10, 5], 50),
        ({"area": 10**400}, [MISSING], [40, 20, 10, 5], 50),
        ({"iscrowd": "0"}, [MISSING], [40, 20, 10, 5], 50),
        ({"masks": False, "area": 30}, [], [40, 20, 10, 5], 30),  # of a mask that is not in the file
        ({"masks": False, "area": -5}, [MISSING], [40, 20, 10, 5], 50),
        ({"masks": False, "area": "x"}, [MISSING], [40, 20, 10, 5], 50),
        ({"masks": False, "area": 10**400}, [MISSING], [40, 20, 10, 5], 50),
        ({"masks": False, "area": 1e9}, ["area larger than the box"], [40, 20, 10, 5], 50),
        ({"masks": False, "bbox": [-9, -9, 99, 99]}, ["box partly outside the image"], [0, 0, 64, 48], 50),
        (
            {"masks": False, "bbox": [-10, 20, 30, 40], "area": 1200},
            ["box partly outside the image", "area larger than the box"],
            [0, 20, 20, 28],
            560,
        ),
        ({"masks": False, "bbox": [-10, 20, 30, 40], "area": None}, [MISSING, "box partly outside the image"],
         [0, 20, 20, 28], 560),
    ],
)  # fmt: skip
def test_objects_that_are_repaired(folder, values, faults, box, area):
    found, content = cleaned(*with_object(folder, **values))
    found.pop("annotations: polygon partly outside the image", None)
    assert found == {f"annotations: {fault}": (1, "repaired") for fault in faults}
    after = content["annotations"][1]
    assert (after["bbox"], after["area"], after["iscrowd"]) == (box, area, 0)


def test_objects_that_repairs_make_equal(folder):
    """Two boxes that end at different places outside the image are equal in the clean copy."""
    json_file, _ = with_object(folder, masks=False, bbox=[50, 20, 90, 5])
    content = json.loads(Path(json_file).read_text())
    content["annotations"].append({**content["annotations"][1], "id": 3, "bbox": [50, 20, 60, 5]})
    faults, content = cleaned(*write(folder, content))
    assert faults["annotations: object annotated twice"] == (1, "dropped")
    assert len(content["annotations"]) == 2


def test_names_that_are_not_text(folder):
    json_file, _ = with_object(folder, categories=[{"id": i, "name": x} for i, x in ((2, ["b"]), (3, None), (4, 7))])
    content = json.loads(Path(json_file).read_text())
    content["images"] += [{"id": 2, "file_name": 5}, {"id": 3, "file_name": None}, {"id": 4, "file_name": ["1.png"]}]
    faults, content = cleaned(*write(folder, content))
    assert faults == {
        "categories: name that is not text": (2, "dropped"),
        "categories: name that is a number": (1, "repaired"),
        "categories: no object, so neither trained on nor evaluated": (1, "kept"),
        "images: file_name that is not text": (3, "dropped"),
    }
    assert content["categories"] == [{"id": 1, "name": "a"}, {"id": 4, "name": "7"}]


def test_sizes_that_cannot_be(folder):
    json_file, _ = with_object(folder)
    content = json.loads(Path(json_file).read_text())
    content["images"][0]["width"] = 10**400
    faults, content = cleaned(*write(folder, content))
    assert faults == {"images: no width and height": (1, "repaired")}
    assert content["images"][0]["width"] == 64


def test_a_clean_copy_that_cannot_be_written(folder, capsys):
    json_file, images = with_object(folder)
    (folder / "train.clean.json").mkdir()
    assert run("check", [json_file, images, "--fix"]) == 2
    assert f"{folder}/train.clean.json cannot be written" in capsys.readouterr().err


def test_between_files(folder, capsys):
    content = {
        "images": [{"id": 1, **image(folder / "images", "1.png")}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": SQUARE, "bbox": [10, 10, 20, 20],
                         "area": 400, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }  # fmt: skip
    train, val = write(folder, content), write(folder, {**content, "categories": [{"id": 1, "name": "dog"}]}, "val")
    assert run("check", list(train)) == 0
    capsys.readouterr()
    assert run("check", [*train, *val]) == 1
    text = capsys.readouterr().out.split("between the 2 files")[1]
    assert "categories: different from the first file's" in text
    assert "only file 1 has 'cat'; only file 2 has 'dog'" in text
    assert "images: the same picture in two files" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not a JSON file"),
        ("[]", "is not a COCO file"),
        ('{"images": [], "annotations": [], "categories": []}', "none of its categories can be used"),
    ],
)
def test_files_that_cannot_be_read(folder, capsys, content, message):
    path = folder / "x.json"
    path.write_text(content)
    assert run("check", [str(path), str(folder / "images")]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("check", [str(path)])
    assert "JSON IMAGES" in capsys.readouterr().err


def test_values_of_more_than_eight_bits_and_further_pages(tmp_path, capsys):
    json_file = Path(make_shapes(tmp_path, "train", 6, seed=0))
    content = json.loads(json_file.read_text())
    for place, listed in enumerate(content["images"]):
        path = tmp_path / "images" / listed["file_name"]
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        deep = Image.fromarray(grey if place == 5 else grey << 8)
        path.unlink()
        listed["file_name"] = f"{path.stem}.tif"
        deep.save(path.with_suffix(".tif"), save_all=True, append_images=[deep] * (place == 2))
    json_file.write_text(json.dumps(content))
    found = {row.what: row for row in examine(str(json_file), str(tmp_path / "images")).findings}
    deep = found["images: more than 8 bits"]
    assert (deep.count, deep.first, deep.severity) == (6, "values 0 to 65535 become 0 to 255", "note")
    pages = found["images: further pages or frames, which are not read"]
    assert (pages.count, pages.first) == (1, content["images"][2]["file_name"])
    odd = found["images: values far from the range of the others"]
    assert (odd.count, odd.severity) == (1, "warning")
    assert odd.first.startswith(content["images"][5]["file_name"])
    assert run("check", [str(json_file), str(tmp_path / "images")]) == 1
    assert "values 0 to 65535 become 0 to 255" in capsys.readouterr().out
