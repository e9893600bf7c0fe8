"""Labels of other programs: round trips, files as the programs write them, what is counted, and broken files."""

import base64
import io
import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from PIL import Image

from instseg_d2.apps.convert import _drawn, convert
from instseg_d2.commands import run
from instseg_d2.data.labels.geometry import bridged, ellipse, traced
from instseg_d2.data.labels.label_studio import packed
from instseg_d2.data.segmentations import to_rle
from instseg_d2.data.voc import CLASSES, PALETTE
from instseg_d2.errors import ConfigError, DatasetError

SIZE = (40, 50)  # height, width
NAMES = {9: "späte Birne: groß", 2: "apple"}
FILES = ["sub folder/été 1.png", "empty.png"]


def masks():
    """A ring with an island, two parts, a plain square, and an object whose pixels touch at a corner."""
    found = np.zeros((4, *SIZE), np.uint8)
    found[0, 5:25, 5:25] = 1
    found[0, 9:20, 9:20] = 0
    found[0, 12:15, 12:15] = 1
    found[1, 30:36, 2:8] = found[1, 31:38, 20:26] = 1
    found[2, 2:12, 30:44] = 1
    found[3, 20:24, 30:34] = found[3, 24:28, 34:38] = 1
    return found


def json_rle(mask):
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


@pytest.fixture
def source(tmp_path):
    """(COCO file, image folder): ring, two parts as polygons, square, corners, a box, a crowd; an empty image."""
    images = tmp_path / "photos"
    for name in FILES:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(images / name)
    segmentations = [json_rle(mask) for mask in masks()]
    segmentations[1] = [[2, 30, 8, 30, 8, 36, 2, 36], [20, 31, 26, 31, 26, 38, 20, 38]]
    segmentations[2] = [[30, 2, 44, 2, 44, 12, 30, 12]]
    boxes = [[5, 5, 20, 20], [2, 30, 24, 8], [30, 2, 14, 10], [30, 20, 8, 8]]
    annotations = [
        {"id": i, "image_id": 70, "category_id": 9 if i % 2 else 2, "iscrowd": 0, "area": int(mask.sum()), "bbox": box,
         "segmentation": segmentation}
        for i, (mask, box, segmentation) in enumerate(zip(masks(), boxes, segmentations), start=1)
    ]  # fmt: skip
    annotations.append({"id": 5, "image_id": 70, "category_id": 2, "iscrowd": 0, "area": 40, "bbox": [1, 1, 4, 10]})
    content = {
        "images": [{"id": 70 - i, "file_name": n, "height": SIZE[0], "width": SIZE[1]} for i, n in enumerate(FILES)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()] + [{"id": 40, "name": "unused"}],
    }
    path = tmp_path / "coco.json"

    def write(change=None):
        if change is not None:
            change(content)
        path.write_text(json.dumps(content))
        return path, images

    return write


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def objects_of(path):
    """[(file name, class id, mask or box, crowd)] of a COCO file, rasterised by pycocotools."""
    content = json.loads(path.read_text())
    images = {image["id"]: image for image in content["images"]}
    found = []
    for a in content["annotations"]:
        image, mask = images[a["image_id"]], a.get("segmentation")
        what = mask_util.decode(to_rle(mask, image["height"], image["width"])) if mask else a["bbox"]
        found.append((image["file_name"], a["category_id"], np.asarray(what).tolist(), a["iscrowd"]))
    return content, found


WRITES = {
    "coco": [],
    "labelme": [],
    "via": ["objects with holes: cut open by bridges of no width: 1"],
    "voc": ["boxes without a mask: written as rectangles: 1"],
    "yolo": [
        "boxes without a mask: written as rectangles: 1",
        "objects with holes: cut open by bridges of no width: 1",
        "objects of several parts: joined by bridges of no width: 1",  # the ring with its island is counted above
    ],
}


@pytest.mark.parametrize("name", WRITES)
def test_round_trip(source, tmp_path, name):
    path, images = source()
    there, back = tmp_path / "there", tmp_path / "back"
    report = convert(path, name, there, images=images)
    assert report[0] == "read coco labels: 2 images, 5 objects, 3 classes"
    assert sorted(report[1:-1]) == sorted(WRITES[name])
    report = convert(there, "coco", back, images=images if name in ("coco", "via") else None)
    assert report[0] == f"read {name} labels: 2 images, 5 objects, 3 classes"
    assert len(report) == 2

    content, found = objects_of(back / "annotations.json")
    assert {c["id"]: c["name"] for c in content["categories"]} == {**NAMES, 40: "unused"}
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    assert sizes == dict.fromkeys(FILES, SIZE)
    expected = objects_of(path)[1]
    if name in ("voc", "yolo"):
        expected[4] = (*expected[4][:2], box_mask().tolist(), 0)
    assert sorted(found, key=str) == sorted(expected, key=str)


def box_mask():
    mask = np.zeros(SIZE, np.uint8)
    mask[1:11, 1:5] = 1
    return mask


def test_traced_masks_are_exact():
    """Random masks, with holes in holes and pixels that touch at corners, by COCO's rule and by OpenCV's contours."""
    rng = np.random.default_rng(3)
    for density in [0.2, 0.5, 0.8, 0.95] * 12:
        height, width = rng.integers(1, 15, 2).tolist()
        mask = (rng.random((height, width)) < density).astype(np.uint8)
        found = traced(mask_util.encode(np.asfortranarray(mask)))
        assert len(found) == cv2.connectedComponents(mask, connectivity=8)[0] - 1
        holes = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1), connectivity=4)[0] - 2
        assert sum(len(inner) for _, inner in found) == holes
        if found:
            ring = bridged([ring for outer, inner in found for ring in (outer, *inner)])
            assert (mask_util.decode(to_rle([ring.ravel().tolist()], height, width)) == mask).all()


def test_ellipse():
    x, y = np.reshape(ellipse(30, 20, 10, 5, np.pi / 2), (-1, 2)).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((25, 35, 10, 30), abs=0.01)
    assert cv2.contourArea(np.float32([x, y]).T) == pytest.approx(np.pi * 50, rel=1e-4)


def test_yolo_lines(source, tmp_path):
    """Ultralytics' layout: fractions of the sides, classes by index, an empty file for an empty image."""
    path, images = source()
    convert(path, "yolo", tmp_path / "out", images=images)
    assert yaml.safe_load((tmp_path / "out/data.yaml").read_text()) == {
        "train": "images",
        "val": "images",
        "names": {0: "apple", 1: "späte Birne: groß", 2: "unused"},
    }
    assert (tmp_path / "out/labels/empty.txt").read_text() == ""
    assert (tmp_path / "out/images/empty.png").resolve() == images / "empty.png"
    lines = (tmp_path / "out/labels/sub folder/été 1.txt").read_text().splitlines()
    assert lines[2] == "1 0.6 0.05 0.88 0.05 0.88 0.3 0.6 0.3"  # 30, 2 to 44, 12 of 50 x 40 pixels
    assert [line.split()[0] for line in lines] == ["1", "0", "1", "0", "0"]
    # Ultralytics fills polygons with OpenCV: up to a pixel along the outline and the bridge
    ring = np.float32(lines[0].split()[1:]).reshape(-1, 2) * SIZE[::-1]
    filled = cv2.fillPoly(np.zeros(SIZE, np.uint8), [np.int32(ring.round())], 1)
    wrong = filled != masks()[0]
    assert not wrong[10:12, 13:19].any()
    assert not wrong[6:8, 8:24].any()


def test_what_a_format_cannot_hold_is_counted(source, tmp_path):
    def change(content):
        square = content["annotations"][2]
        content["annotations"] += [
            {**square, "id": 6, "segmentation": [[40, 8, 48, 8, 48, 16, 40, 16]], "bbox": [40, 8, 8, 8], "area": 64},
            {**square, "id": 7, "segmentation": json_rle(masks()[2]), "iscrowd": 1},
            # two overlapping polygons of one object
            {**square, "id": 8, "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6], [4, 4, 8, 4, 8, 8, 4, 8]],
             "bbox": [2, 2, 6, 6], "area": 28},
        ]  # fmt: skip

    path, images = source(change)
    lines = convert(path, "voc", tmp_path / "voc", images=images)
    # the square under object 6; the box under object 8, and object 8 under none; the ring under object 8
    assert "objects partly under others: the masks lose those pixels: 3" in lines
    assert "crowds: left out: 1" in lines
    convert(path, "yolo", tmp_path / "yolo", images=images)
    line = (tmp_path / "yolo/labels/sub folder/été 1.txt").read_text().splitlines()[-1]
    ring = (np.float64(line.split()[1:]).reshape(-1, 2) * SIZE[::-1]).ravel().tolist()
    assert mask_util.area(to_rle([ring], *SIZE)) == 16 + 16 - 4
    for name in ("labelme", "via"):
        convert(path, name, tmp_path / name, images=images)
        convert(tmp_path / name, "coco", tmp_path / f"{name}_back", images=images)
        found = objects_of(tmp_path / f"{name}_back/annotations.json")[1]
        assert [x[2] for x in found if x[3]] == [masks()[2].tolist()]


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_labelme_files_of_the_program(tmp_path):
    """Windows paths, a mask, a circle, a group, shapes without area, ids by name; another JSON file in the folder."""
    (tmp_path / "img").mkdir()
    (tmp_path / "json").mkdir()
    Image.new("L", (50, 40)).save(tmp_path / "img/a b.jpg")
    crop = np.uint8([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    shapes = [
        {"label": "zebra", "points": [[10, 10], [12, 12]], "shape_type": "mask", "mask": png(crop), "group_id": None},
        {"label": "ant", "points": [[20, 20], [25, 20]], "shape_type": "circle", "flags": {}},
        {"label": "zebra", "points": [[30, 5], [30, 8], [34, 8], [34, 5]], "group_id": 4, "shape_type": "polygon"},
        {"label": "zebra", "points": [[40, 5], [40, 8], [44, 8], [44, 5]], "group_id": 4, "shape_type": "polygon"},
        {"label": "ant", "points": [[9, 39], [5, 30]], "shape_type": "rectangle"},
        {"label": "ant", "points": [[9, 39], [5, 30]], "shape_type": "line"},
    ]
    content = {"version": "5.5.0", "imagePath": "..\\img\\a b.jpg", "imageData": None, "shapes": shapes,
               "imageWidth": 50, "imageHeight": 40}  # fmt: skip
    (tmp_path / "json/a b.json").write_text(json.dumps(content))
    (tmp_path / "json/other.json").write_text("[]")
    lines = convert(tmp_path / "json", "coco", tmp_path / "out", images=tmp_path / "img")
    assert lines[1:-1] == [
        "shapes without area (line): left out: 1",
        "JSON files that are not LabelMe's: left out: 1",
        "classes numbered from 1, since only names are known: 2",
    ]
    content, found = objects_of(tmp_path / "out/annotations.json")
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "ant"), (2, "zebra")]
    expected = np.zeros((3, *SIZE), np.uint8)
    expected[0, 10:13, 10:13] = crop
    expected[1, 5:8, 30:34] = expected[1, 5:8, 40:44] = 1
    assert [x[:3] for x in found if x[1] == 2] == [("a b.jpg", 2, expected[i].tolist()) for i in (0, 1)]
    circle, box = (x[2] for x in found if x[1] == 1)
    assert np.sum(circle) == pytest.approx(np.pi * 25, abs=4)
    assert box == [5, 30, 4, 9]


def test_via_exports(tmp_path):
    """Exported annotations (VIA 2), those of VIA 1 without classes, and a project with checkboxes."""
    Image.new("L", (50, 40)).save(tmp_path / "a.png")
    square = {"name": "polygon", "all_points_x": [5, 15, 15, 5], "all_points_y": [5, 5, 15, 15]}
    circle = {"name": "circle", "cx": 30, "cy": 20, "r": 6.5}
    rect = {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}
    point = {"name": "point", "cx": 3, "cy": 3}

    def read(regions, project=False):
        content = {"a.png99": {"filename": "a.png", "size": 99, "regions": regions, "file_attributes": {}}}
        if project:
            options = {"region": {"kind": {"type": "checkbox", "options": {"b": "", "a": ""}}}, "file": {}}
            content = {"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": options}
        (tmp_path / "via.json").write_text(json.dumps(content))
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        lines = convert(tmp_path / "via.json", "coco", out)
        content, found = objects_of(out / "annotations.json")
        return lines, {c["id"]: c["name"] for c in content["categories"]}, [x[1:3] for x in found]

    shapes = [(square, {"type": "pear"}), (rect, {"type": "fig"}), (point, {"type": "fig"}), (circle, {})]
    lines, names, found = read([{"shape_attributes": s, "region_attributes": a} for s, a in shapes])
    assert lines[1:3] == ["regions without area (point): left out: 1", "regions without a class: left out: 1"]
    mask = np.zeros(SIZE, int)
    mask[5:15, 5:15] = 1
    assert (names, found) == ({1: "fig", 2: "pear"}, [(2, mask.tolist()), (1, [1, 2, 3, 4])])
    _, names, found = read({"0": {"shape_attributes": square, "region_attributes": {}}})
    assert (names, found) == ({1: "object"}, [(1, mask.tolist())])
    region = {"shape_attributes": square, "region_attributes": {"kind": {"a": True}}}
    _, names, found = read([region], project=True)
    assert (names, found) == ({1: "b", 2: "a"}, [(2, mask.tolist())])


@pytest.mark.parametrize("program", ["voc", "cvat", "labelme"])
def test_voc_masks_of_the_programs(tmp_path, program):
    """VOC's palette images and classes, CVAT's colours with a label map, and LabelMe's folders; void is no object."""
    objects, classes = np.zeros((2, 12, 10), np.uint8)
    objects[2:5, 2:5], classes[2:5, 2:5] = 1, 2
    objects[7:10, 2:9], classes[7:10, 2:9] = 2, 1
    objects[0], classes[0] = 255, 255
    end = "PNG" if program == "labelme" else ""
    for name, array in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        (tmp_path / (name + end)).mkdir()
        image = Image.fromarray(array)
        image.putpalette(PALETTE.astype(np.uint8).tobytes())
        colors = {1: (250, 50, 83), 2: (51, 221, 255)}
        if program == "cvat":
            image = image.convert("RGB")
            if name == "SegmentationClass":
                pixels = np.array(image)
                for number, color in colors.items():
                    pixels[array == number] = color
                image = Image.fromarray(pixels)
        image.save(tmp_path / (name + end) / "x.png")
    names = list(CLASSES)
    if program == "cvat":
        names = ["left: one", "right"]
        (tmp_path / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nleft: one:250,50,83::\nbackground:0,0,0::\nright:51,221,255::\n"
        )
    if program == "labelme":
        names = ["dog", "cat"]
        (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    lines = convert(tmp_path, "coco", tmp_path / "out")
    assert "images whose file is missing: their labels are kept: 1" in lines
    content, found = objects_of(tmp_path / "out/annotations.json")
    assert [c["name"] for c in content["categories"]] == names
    assert found == [("x.jpg", 2, (objects == 1).astype(int).tolist(), 0),
                     ("x.jpg", 1, (objects == 2).astype(int).tolist(), 0)]  # fmt: skip


def test_more_than_254_objects_in_a_mask(tmp_path):
    """The file gets 16 bits, without the number that means void."""
    Image.new("L", (40, 20)).save(tmp_path / "a.png")
    boxes = [[2 * (i % 20), 2 * (i // 20) + 1, 1, 1] for i in range(200)]
    boxes += [[2 * (i % 20) + 1, 2 * (i // 20) + 1, 1, 1] for i in range(100)]
    polygons = [[[x, y, x + 1, y, x + 1, y + 1, x, y + 1]] for x, y, _, _ in boxes]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": b, "segmentation": p, "area": 1,
                         "iscrowd": 0} for i, (b, p) in enumerate(zip(boxes, polygons), start=1)],
        "categories": [{"id": 1, "name": "dot"}],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    convert(tmp_path / "coco.json", "voc", tmp_path / "voc")
    objects = np.array(Image.open(tmp_path / "voc/SegmentationObject/a.png"))
    assert set(np.unique(objects)) == set(range(302)) - {255}
    assert convert(tmp_path / "voc", "coco", tmp_path / "back")[0].startswith("read voc labels: 1 images, 300 objects")


def unpacked(data):
    """Label Studio's run lengths, bit by bit: [value, ...]."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(number):
        nonlocal place
        place += number
        return int(bits[place - number : place], 2)

    total, word, widths = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        repeats, length = take(1), take(widths[take(2)]) + 1
        values += [take(word)] * length if repeats else [take(word) for _ in range(length)]
    return values


def test_label_studio(source, tmp_path):
    path, images = source()
    convert(path, "label-studio", tmp_path / "out", images=images)
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    assert [t["data"]["image"] for t in tasks] == [
        "/data/local-files/?d=sub%20folder/%C3%A9t%C3%A9%201.png",
        "/data/local-files/?d=empty.png",
    ]
    results = tasks[0]["predictions"][0]["result"]
    kinds = ["brushlabels", "brushlabels", "polygonlabels", "polygonlabels", "polygonlabels"]
    assert [r["type"] for r in results] == kinds
    for result, mask in zip(results, masks()):
        value = result["value"]
        if "rle" in value:
            found = np.reshape(unpacked(value["rle"]), (*SIZE, 4))
            assert (found == 255 * mask[..., None]).all()
        else:
            ring = (np.array(value["points"]) * SIZE[::-1] / 100).ravel().tolist()
            assert (mask_util.decode(to_rle([ring], *SIZE)) == mask).all()
    assert results[2]["value"]["polygonlabels"] == [NAMES[9]]
    assert tasks[1]["predictions"][0]["result"] == []
    config = (tmp_path / "out/label_config.xml").read_text()
    assert config.count('<Label value="späte Birne: groß"/>') == 2


def test_huge_boxes_are_cut_at_the_image(source, tmp_path):
    """pycocotools would need memory for every pixel along their sides."""
    path, images = source(lambda content: content["annotations"][-1].update(bbox=[46, 36, 1e300, 10]))
    convert(path, "voc", tmp_path / "out", images=images)
    classes = np.array(Image.open(tmp_path / "out/SegmentationClass/sub folder/été 1.png"))
    assert (classes[36:, 46:] == 1).all()


def test_a_yolo_file_names_the_folder(tmp_path):
    """Splits as Roboflow writes them."""
    for split, line in (("train", "0 0.5 0.5 0.5 0.5"), ("valid", "1 0 0 0.5 0 0.5 0.5")):
        write(tmp_path / "data" / split / "labels/a.txt", line)
        (tmp_path / "data" / split / "images").mkdir()
        Image.new("L", (8, 6)).save(tmp_path / "data" / split / "images/a.png")
    write(tmp_path / "mine.yaml", "path: data\ntrain: train/images\nval: valid/images\nnames: [a, b]")
    convert(tmp_path / "mine.yaml", "coco", tmp_path / "out")
    content = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["train/images/a.png", "valid/images/a.png"]
    assert [a["bbox"] for a in content["annotations"]] == [[2, 1.5, 4, 3], [0, 0, 4, 3]]


def test_long_runs_are_split():
    mask = np.zeros((200, 100), np.uint8)
    assert unpacked(packed(mask)) == [0] * 80000


def test_images_of_another_size_or_without_a_file(source, tmp_path):
    """A photo that its EXIF tag turns has other sides for the other programs."""
    path, images = source(lambda content: content["images"].append(
        {"id": 3, "file_name": "gone.png", "height": 4, "width": 5}))  # fmt: skip
    turned = Image.new("RGB", SIZE[::-1])
    exif = turned.getexif()
    exif[274] = 6
    turned.save(images / FILES[0], exif=exif)
    lines = convert(path, "labelme", tmp_path / "out", images=images)
    assert lines[0] == "read coco labels: 2 images, 0 objects, 3 classes"
    assert lines[1] == "images whose file is missing: their labels are kept: 1"
    assert lines[2] == (
        "left out: images: file of another size than listed (sub folder/été 1.png: 40 x 50, not (50, 40))"
    )
    lines = convert(tmp_path / "out", "yolo", tmp_path / "yolo", images=images)
    assert lines[0] == "read labelme labels: 2 images, 0 objects, 3 classes"


FAULTS = {
    "no format": ({"x/readme.md": ""}, [], "x is not recognised"),
    "not there": ({}, [], "x: no such file or folder"),
    "no JSON": ({"x/a.json": "{"}, [], "a.json is not a JSON file"),
    "two files": ({f"x/{n}.json": {"images": [], "annotations": []} for n in "ab"}, [], "several label files, such"),
    "no names": ({"x/data.yaml": "nc: 2"}, [], "data.yaml does not name the classes"),
    "not a fraction": ({"x/data.yaml": "names: [a]", "x/a.txt": "0 3 1 2 1 2 3"}, ["x/a.png"], "a.txt, line 1: not a"),
    "no such class": ({"x/data.yaml": "names: [a]", "x/a.txt": "4 0 0 0 1 1 1"}, ["x/a.png"], "line 1: class 4, but"),
    "odd": ({"x/data.yaml": "names: [a]", "x/a.txt": "0 0 0 0 1 1 1 .5\n\n"}, ["x/a.png"], ""),
    "two names alike": ({"x/data.yaml": "names: [a, b, a]"}, ["x/a.png"], "x: two classes are called 'a'; rename"),
    "no background": (
        {"x/labelmap.txt": "a:1,2,3::", "x/SegmentationClass/b": ""}, ["x/SegmentationObject/a.png"],
        "labelmap.txt has no line for background",
    ),
    "LabelMe mask": (
        {"x/a.json": {"imagePath": "a.png", "shapes": [
            {"label": "b", "points": [[1e999, 1], [2, 2]], "shape_type": "mask", "mask": png(np.uint8([[1]]))},
        ]}}, ["x/a.png"], "a.json: a shape is not what LabelMe writes",
    ),
    "LabelMe shape": (
        {"x/a.json": {"imagePath": "a.png", "shapes": [{"label": "b", "points": [[1], [2]]}]}}, ["x/a.png"],
        "a.json: a shape is not what LabelMe writes",
    ),
    "VIA attributes": (
        {"x/v.json": {"k": {"filename": "a.png", "regions": [{"shape_attributes": {"name": "rect"},
                                                               "region_attributes": {"size": "1", "form": "2"}}]}}},
        ["x/a.png"], "none of the region attributes size, form is called class",
    ),
    "VIA without images": (
        {"x/v.json": {"k": {"filename": "b.png", "regions": []}}}, ["x/a.png"],
        "x/v.json: no image with labels; images whose file is missing, and so their size",
    ),
    "VOC without class map": (
        {"x/SegmentationClass/b": ""}, ["x/SegmentationObject/a.png"], "SegmentationClass/a.png: no such file",
    ),
    "categories": ({"x/data.yaml": "names: [a]", "x/categories.json": {}}, ["x/a.png"], "is not a list of categories"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_files_are_one_sentence(tmp_path, monkeypatch, capsys, fault):
    files, images, message = FAULTS[fault]
    for name, content in files.items():
        write(tmp_path / name, content)
    for name in images:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 6)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    status = run("convert", ["x", "--to", "coco", "--output", "out"])
    text = capsys.readouterr()
    if not message:  # an annotation is left out, as in training
        assert status == 0
        assert "left out: annotations: polygon with an odd number of coordinates (annotation 1" in text.out
        return
    assert status == 2
    (line,) = text.err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "a.jpg"], "a.png and a.jpg would share the label file a.txt: rename one of them."),
        (["\ud800.png"], "'\\ud800.png': no file can have this name."),
        ([f"{'n' * 252}.jpg"], f"{'n' * 252}.jpg: too long a name for a label file .txt; shorten it."),
        (["a.png", "../b.png"], "'../b.png': the name of an image must lead to a file below the image folder."),
    ],
)
def test_names_that_cannot_be_written(source, tmp_path, names, message):
    def change(content):
        content["images"] = [{"id": 70 - i, "file_name": n, "height": 40, "width": 50} for i, n in enumerate(names)]

    path, images = source(change)
    with pytest.raises(DatasetError) as error:
        convert(path, "yolo", tmp_path / "out", images=images)
    assert str(error.value) == message


def test_the_output_must_be_empty(source, tmp_path, capsys):
    path, images = source()
    before = path.read_text()
    assert run("convert", [str(path), "--to", "coco", "--images", str(images), "--output", str(tmp_path)]) == 2
    assert f"error: {tmp_path} is not an empty folder" in capsys.readouterr().err
    assert path.read_text() == before


def test_validation_images_are_set_aside(source, tmp_path):
    """Each image with its objects in one of two files; the same ones each time."""
    path, images = source()
    expected = objects_of(path)[1]
    for out in (tmp_path / "a", tmp_path / "b"):
        report = convert(path, "coco", out, images=images, val_share=0.1)
        assert report[1] == "train.json: 1 images, val.json: 1"
        (train, in_train), (val, in_val) = (objects_of(out / f"{name}.json") for name in ("train", "val"))
        assert train["categories"] == val["categories"]
        assert sorted(in_train + in_val, key=str) == sorted(expected, key=str)
        assert {found[0] for found in in_train}.isdisjoint({found[0] for found in in_val})
    assert (tmp_path / "a/val.json").read_bytes() == (tmp_path / "b/val.json").read_bytes()


def test_crowds_are_no_objects_of_a_set_aside_class():
    """Two images have the class, one of them only as a crowd: the other one is trained on."""
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(4)]
    for crowd in range(2):
        objects = {i: [{"category_id": 7, "iscrowd": int(i == crowd)}] if i < 2 else [] for i in range(4)}
        drawn, missing = _drawn(images, objects, 0.25)
        assert 1 - crowd not in drawn
        assert missing == []


@pytest.mark.parametrize(("target", "share"), [("coco", 1.0), ("coco", -0.1), ("yolo", 0.2), ("coco", float("nan"))])
def test_a_share_that_cannot_be_set_aside(source, tmp_path, target, share):
    path, images = source()
    with pytest.raises(ConfigError, match=r"--val .* must be above 0 and below 1, and goes with --to coco"):
        convert(path, target, tmp_path / "out", images=images, val_share=share)
    assert not (tmp_path / "out").exists()
