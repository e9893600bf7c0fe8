import json
import logging
import os
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from instseg_d2.data import check_same_classes, class_names, register_coco, register_from_environment
from instseg_d2.data.coco_masks import rle_counts
from instseg_d2.data.segmentations import to_rle
from instseg_d2.errors import DatasetError


def test_gaps_order_and_mixed_masks(registered, coco_files):
    json_file, images = coco_files()
    name = registered("mixed", json_file, images)
    assert class_names(name) == ["early", "late"]
    dicts = DatasetCatalog.get(name)
    assert [d["image_id"] for d in dicts] == [3, 7]
    assert [a["category_id"] for a in dicts[1]["annotations"]] == [1, 0]
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "coco"
    assert metadata.json_file == str(json_file)  # nothing to correct, nothing copied
    assert metadata.image_root == str(images)
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 9: 1}


def test_registering_reads_nothing(registered, tmp_path):
    name = registered("absent", tmp_path / "none.json", tmp_path)
    with pytest.raises(DatasetError, match=r"none\.json: no such annotation file"):
        DatasetCatalog.get(name)


def drop(*keys):
    def change(content):
        for key in keys:
            content.pop(key)

    return change


def set_in(key, number, **values):
    return lambda content: content[key][number].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("images"), r"instances\.json is not a COCO file: it lacks the list images"),
        (drop("annotations", "categories"), "lacks the lists annotations, categories"),
        (lambda c: c.update(categories=[]), "none of its categories can be used"),
        (lambda c: c.update(images=[]), "none of its images can be used"),
        (set_in("annotations", 1, category_id=5), r"unknown category \(annotation 2: 5\)"),
        (set_in("annotations", 2, image_id=8), r"unknown image \(annotation 3: 8\)"),
        (set_in("annotations", 2, image_id=[8]), r"unknown image \(annotation 3: \[8\]\)"),
        (set_in("images", 0, id=3), r"images: duplicate id \(entry 1 of images: id 3\)"),
        (set_in("categories", 0, id=2), r"categories: duplicate id \(entry 1 of categories: id 2\)"),
        (set_in("categories", 0, id=[9]), r"id that is neither number nor text \(entry 0 of categories: \[9\]\)"),
        (set_in("images", 1, file_name=5), "file_name that is not text .*: 5"),
        (set_in("images", 1, file_name=None), "file_name that is not text .*: None"),
        (set_in("categories", 1, name=None), "name that is not text .*: None"),
        (set_in("categories", 1, name=["a"]), r"name that is not text .*: \['a'\]"),
        (lambda c: c["images"][1].pop("file_name"), r"images: no file_name \(entry 1 of images\)"),
        (lambda c: c["annotations"][1].pop("category_id"), r"annotations: no category_id \(entry 1 of annotations\)"),
    ],
)
def test_faulty_files(registered, coco_files, change, message):
    name = registered("faulty", *coco_files(change))
    with pytest.raises(DatasetError, match=message) as caught:
        DatasetCatalog.get(name)
    assert "instances.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{not json", "", "\x00\x01"])
def test_files_that_are_not_json(registered, tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"broken\.json is not a JSON file"):
        DatasetCatalog.get(registered("broken", path, tmp_path))


def test_files_that_are_not_coco_and_missing_folders(registered, tmp_path, coco_files):
    path = tmp_path / "list.json"
    path.write_text("[1, 2]")
    with pytest.raises(DatasetError, match="is not a COCO file"):
        DatasetCatalog.get(registered("list", path, tmp_path))
    json_file, images = coco_files()
    with pytest.raises(DatasetError, match="nowhere: no such image folder"):
        DatasetCatalog.get(registered("nowhere", json_file, images / "nowhere"))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"segmentation": [[1, 1, 4, 4]]}, "polygon with fewer than 3 points"),
        ({"segmentation": [[]]}, "polygon with fewer than 3 points"),
        ({"segmentation": []}, "annotation without a mask"),
        ({"segmentation": [[50, 40, 60, 40, 60, 45]]}, "polygon outside the image"),
        ({"segmentation": [[-9, 2, -1, 2, -1, 8]]}, "polygon outside the image"),
        ({"segmentation": [[1, 1, 4, 4, 8, 8]], "area": 0}, "polygon without area"),
        ({"segmentation": [[1, 1, 4, float("nan"), 8, 8]]}, "polygon with a coordinate that is not a number"),
        ({"segmentation": [[1, 1, 4, None, 8, 8]]}, "polygon with a coordinate that is not a number"),
        ({"segmentation": {"size": [30, 40], "counts": [1200]}}, "empty RLE"),
        ({"segmentation": {"size": [30, 40], "counts": [5, 5]}}, "broken RLE"),
        ({"segmentation": {"size": [30, 40], "counts": "zzzz"}}, "broken RLE"),
        ({"segmentation": {"size": [40, 30], "counts": [600, 600]}}, "RLE of another size than the image"),
        ({"segmentation": "abc"}, "mask that is neither polygon nor RLE"),
        ({"segmentation": [[1, 1, 4, 10**400, 8, 8]]}, "polygon with a coordinate that is not a number"),
        ({"segmentation": [[1, 1, 4, 1e9, 8, 8]]}, "polygon with a coordinate beyond 100000"),
        ({"segmentation": {"size": [30, 40], "counts": [float("inf")]}}, "mask that is neither polygon nor RLE"),
        ({"iscrowd": "no"}, "crowd flag that is neither 0 nor 1"),
    ],
)
def test_unusable_annotations_are_dropped_with_one_warning(registered, coco_files, caplog, values, fault):
    name = registered("dropping", *coco_files(set_in("annotations", 0, **values)))
    with caplog.at_level(logging.WARNING, logger="instseg_d2"):
        dicts = DatasetCatalog.get(name)
        DatasetCatalog.get(name)  # the second time nothing is said
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("instseg_d2")]
    assert len(messages) == 1
    assert "1 of 3 annotations are dropped" in messages[0]
    assert f"annotations: {fault} (annotation 1 of image 7)" in messages[0]
    assert [len(d["annotations"]) for d in dicts] == [1, 1]
    # The evaluator reads a file without it.
    metadata = MetadataCatalog.get(name)
    assert os.environ["INSTSEG_CACHE"] in metadata.json_file
    coco = COCO(metadata.json_file)
    assert sorted(coco.anns) == [2, 3]
    for annotation in coco.anns.values():
        assert coco.annToMask(annotation).any()


@pytest.mark.parametrize("box", [[5, 5, 0, 9], [60, 5, 9, 9], [1, 2, 3], ["5", "5", "9", "9"], [10**400] * 4])
@pytest.mark.parametrize("masks", [True, False])
def test_a_faulty_box_is_that_of_the_mask(registered, coco_files, box, masks):
    def change(content):
        content["annotations"][0]["bbox"] = box
        for annotation in content["annotations"]:
            annotation.pop("segmentation" if not masks else "ignore", None)

    dicts = DatasetCatalog.get(registered("boxes", *coco_files(change)))
    assert [a["bbox"] for a in dicts[1]["annotations"]] == [[5, 5, 10, 10], [30, 0, 10, 30]][not masks :]


@pytest.mark.parametrize("area", [-5, "x", None, float("nan"), 10**400])
def test_invalid_areas(registered, coco_files, area):
    """They come from the mask or, without masks, from the part of the box inside the image."""
    name = registered("areas", *coco_files(set_in("annotations", 0, area=area)))
    DatasetCatalog.get(name)
    assert COCO(MetadataCatalog.get(name).json_file).anns[1]["area"] == 100

    def change(content):
        content["annotations"][0].update(area=area, bbox=[35, 5, 10, 10])
        for annotation in content["annotations"]:
            annotation.pop("segmentation")

    DatasetCatalog.get(registered("areas", *coco_files(change)))
    assert COCO(MetadataCatalog.get(name).json_file).anns[1]["area"] == 50


@pytest.mark.parametrize(("flag", "crowd"), [("0", 0), ("1", 1), (True, 1), (None, 0), (1.0, 1)])
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_crowd_flags(registered, coco_files, key, flag, crowd):
    name = registered("crowds", *coco_files(set_in("annotations", 0, **{key: flag})))
    assert DatasetCatalog.get(name)[1]["annotations"][0]["iscrowd"] == crowd


def test_the_mark_of_windows_editors(registered, coco_files):
    json_file, images = coco_files()
    json_file.write_bytes(b"\xef\xbb\xbf" + json_file.read_bytes())
    name = registered("windows", json_file, images)
    assert class_names(name) == ["early", "late"]
    assert MetadataCatalog.get(name).json_file != str(json_file)
    assert len(COCO(MetadataCatalog.get(name).json_file).anns) == 3


def test_numbers_as_category_names(registered, coco_files):
    name = registered("numbers", *coco_files(set_in("categories", 0, name=5)))
    assert class_names(name) == ["early", "5"]
    assert COCO(MetadataCatalog.get(name).json_file).cats[9]["name"] == "5"


def test_nothing_left(registered, coco_files):
    def change(content):
        for annotation in content["annotations"]:
            annotation.pop("segmentation")
            annotation["bbox"] = [0, 0, 0, 0]

    with pytest.raises(DatasetError, match=r"none can be used .*3 x box without area"):
        DatasetCatalog.get(registered("nothing", *coco_files(change)))


def test_missing_values_are_filled_in(registered, coco_files):
    def change(content):
        for annotation in content["annotations"]:
            for key in ("area", "bbox", "iscrowd"):
                annotation.pop(key)
            annotation["id"] -= 1  # 0 means "not matched" to COCOeval
        for image in content["images"]:
            image.pop("width"), image.pop("height")
        content["annotations"][0]["segmentation"].insert(0, [1, 1, 2, 2])  # no polygon
        content["annotations"][1]["ignore"] = 1

    json_file, images = coco_files(change)
    before = json_file.read_bytes()
    name = registered("filled", json_file, images)
    dicts = {d["image_id"]: d for d in DatasetCatalog.get(name)}
    assert json_file.read_bytes() == before
    assert (dicts[7]["width"], dicts[7]["height"]) == (40, 30)
    first, second = dicts[7]["annotations"]
    assert first["bbox"] == [5, 5, 10, 10]
    assert first["iscrowd"] == 0
    assert second["bbox"] == [30, 0, 10, 30]
    assert second["iscrowd"] == 1
    coco = COCO(MetadataCatalog.get(name).json_file)
    assert {i: a["area"] for i, a in coco.anns.items()} == {1: 100, 2: 300, 3: 50}
    assert coco.anns[1]["segmentation"] == [[5, 5, 15, 5, 15, 15, 5, 15]]


def test_repeated_annotation_ids_are_renumbered(registered, coco_files):
    name = registered("repeated", *coco_files(set_in("annotations", 2, id=1)))
    DatasetCatalog.get(name)
    assert sorted(COCO(MetadataCatalog.get(name).json_file).anns) == [1, 2, 3]


def test_a_flat_polygon_is_taken_as_one(registered, coco_files):
    name = registered("flat", *coco_files(set_in("annotations", 0, segmentation=[5, 5, 15, 5, 15, 15, 5, 15])))
    annotation = DatasetCatalog.get(name)[1]["annotations"][0]
    assert annotation["segmentation"] == [[5, 5, 15, 5, 15, 15, 5, 15]]


def test_boxes_without_any_mask_stay(registered, coco_files):
    def change(content):
        for annotation in content["annotations"]:
            annotation.pop("segmentation")

    dicts = DatasetCatalog.get(registered("boxes", *coco_files(change)))
    assert [len(d["annotations"]) for d in dicts] == [1, 2]


def test_a_changed_file_is_read_again(registered, coco_files):
    json_file, images = coco_files(set_in("annotations", 0, segmentation=[]))
    name = registered("changing", json_file, images)
    assert len(DatasetCatalog.get(name)[1]["annotations"]) == 1
    coco_files()
    assert len(DatasetCatalog.get(name)[1]["annotations"]) == 2
    assert MetadataCatalog.get(name).json_file == str(json_file)


def test_cache_that_cannot_be_written(registered, coco_files, tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "blocked"))
    name = registered("blocked", *coco_files(set_in("annotations", 0, id=0)))
    with pytest.raises(DatasetError, match=r"blocked.*cannot be written.*INSTSEG_CACHE"):
        DatasetCatalog.get(name)


def test_perfect_predictions_score_100_on_a_corrected_file(registered, shapes_folder, tmp_path):
    """Ids from 0, a dropped annotation, no areas: COCOeval on the corrected copy and training see the same."""
    content = json.loads((shapes_folder / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["id"] -= 1
        del annotation["area"], annotation["iscrowd"]
    content["annotations"][0]["segmentation"] = []
    path = tmp_path / "faulty.json"
    path.write_text(json.dumps(content))
    name = registered("evaluated", path, shapes_folder / "images")
    dicts = DatasetCatalog.get(name)
    evaluator = COCOEvaluator(name, tasks=("bbox", "segm"), distributed=False)
    evaluator.reset()
    for record in dicts:
        size = record["height"], record["width"]
        instances = Instances(size)
        instances.pred_boxes = Boxes(np.array([a["bbox"] for a in record["annotations"]]).reshape(-1, 4))
        instances.pred_boxes.tensor[:, 2:] += instances.pred_boxes.tensor[:, :2]
        instances.scores = torch.ones(len(instances.pred_boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.int64)
        masks = [mask_util.decode(to_rle(a["segmentation"], *size)) for a in record["annotations"]]
        instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("seed", range(5))
def test_rle_counts_against_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(rng.random((37, 53)) < rng.random(), dtype=np.uint8)
    if seed:  # long runs as well
        mask[:, 10:40] = seed % 2
    runs = rle_counts(mask_util.encode(mask))
    pixels = np.repeat(np.arange(len(runs)) % 2, runs)
    assert np.array_equal(pixels, mask.ravel(order="F"))


def test_same_classes(registered, coco_files):
    json_file, images = coco_files()
    first = registered("first", json_file, images)
    class_names(first)
    renamed = json_file.with_name("renamed.json")
    content = json.loads(json_file.read_text())
    content["categories"][0]["name"] = "other"
    renamed.write_text(json.dumps(content))
    second = registered("second", renamed, images)
    with pytest.raises(DatasetError, match="only first has 'late'; only second has 'other'"):
        check_same_classes(first, second)
    check_same_classes(first, first)

    swapped = json_file.with_name("swapped.json")
    content["categories"] = [{"id": 2, "name": "late"}, {"id": 9, "name": "early"}]
    swapped.write_text(json.dumps(content))
    third = registered("third", swapped, images)
    with pytest.raises(DatasetError, match="class 1 is 'early' in first and 'late' in third"):
        check_same_classes(first, third)


def test_unknown_name():
    with pytest.raises(DatasetError, match=r"no data set named shapes_trian \(similar: .*shapes_train"):
        class_names("shapes_trian")


def test_names_of_others_are_not_taken(coco_files):
    with pytest.raises(DatasetError, match="coco_2017_val is already registered"):
        register_coco("coco_2017_val", *coco_files())


def test_environment(registered, coco_files, tmp_path, monkeypatch, caplog):
    json_file, images = coco_files()
    folder = tmp_path / "sets" / "mine"
    folder.mkdir(parents=True)
    images.rename(folder / "images")
    for file_name in ("train.json", "val.json", "train_super12.json", "other.json"):
        (folder / file_name).write_bytes(json_file.read_bytes())
    monkeypatch.setenv("INSTSEG_DATASETS", str(tmp_path / "sets"))
    names = register_from_environment()
    try:
        assert sorted(names) == ["mine_super12_train", "mine_train", "mine_val"]
        assert class_names("mine_super12_train") == ["early", "late"]
        assert register_from_environment() == names  # again: no error
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    monkeypatch.delenv("INSTSEG_DATASETS")
    assert register_from_environment() == []
    monkeypatch.setenv("INSTSEG_DATASETS", str(tmp_path / "nowhere"))
    assert register_from_environment() == []
    assert "nowhere, which is not a folder" in caplog.text


@pytest.mark.parametrize("encoding", ["cp1252", "ANSI_X3.4-1968", "utf8"])
def test_names_where_the_locale_is_not_utf_8(registered, coco_files, monkeypatch, encoding):
    """Detectron2 reads JSON in the locale's encoding, so it gets an ASCII copy."""
    json_file, images = coco_files(set_in("categories", 0, name="Größe"))
    json_file.write_text(json.dumps(json.loads(json_file.read_text()), ensure_ascii=False), "utf-8")
    assert not json_file.read_bytes().isascii()
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: encoding)
    name = registered("accents", json_file, images)
    DatasetCatalog.get(name)
    path = MetadataCatalog.get(name).json_file
    assert (path == str(json_file)) == (encoding == "utf8")
    assert "Größe" in [category["name"] for category in json.loads(Path(path).read_text(encoding))["categories"]]
