"""The rules of recipes that configure themselves, which all methods share: decisions derived by hand."""

import dataclasses

import pytest

from instseg_d2.config import load_config
from instseg_d2.config.recipes import find_recipe
from instseg_d2.data.fingerprint import fingerprint_of, network_side
from instseg_d2.engine.auto import Machine
from instseg_d2.engine.auto.plan import _base
from tests.auto_rules import GPU, LAPTOP, RECIPES, decided, several
from tests.fingerprints import record


def test_every_method_has_recipes_to_start_from():
    assert set(RECIPES) == {"BlendMask", "EmbedMask", "InstanceFCN", "ISTR", "SparseInst"}
    for auto in RECIPES.values():
        assert all(find_recipe(name) for name in (auto.small, auto.large, auto.photos))


def test_large_objects():
    """
    Of 240 pixels, half of the shorter side of 480: 192 is enough, and the image has more. 12 x 50 / 4 iterations are
    fewer than 600. Their half, 48 pixels, is where the first level's range ends; the third begins at 96.
    """
    values = decided(several(50, (640, 480), 1, 240))
    assert values["INPUT.MIN_SIZE_TRAIN"] == (160, 192, 224)
    assert values["INPUT.MAX_SIZE_TRAIN"] == 320
    assert (values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"]) == (256, 352)
    assert not values["INPUT.CROP.ENABLED"]
    assert (values["SOLVER.IMS_PER_BATCH"], values["SOLVER.BASE_LR"], values["SOLVER.MAX_ITER"]) == (4, 0.006, 600)
    assert values["SOLVER.WARMUP_ITERS"] == 100
    assert values["TEST.DETECTIONS_PER_IMAGE"] == 100
    assert values["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler"
    assert values["MODEL.FCOS.SIZES_OF_INTEREST"] == [48]
    assert values["MODEL.FCOS.FPN_STRIDES"] == [8, 16]
    assert values["MODEL.FCOS.IN_FEATURES"] == ["p3", "p4"]
    assert values["MODEL.FCOS.TOP_LEVELS"] == 0


def test_tiny_objects_in_huge_photos():
    """20 of 3000 pixels: 2.6 in an image of 384, so crops of 384 pixels are not resized; a test image has 1536."""
    records = several(20, (4000, 3000), 10, 20)
    values = decided(records)
    assert (values["INPUT.CROP.ENABLED"], values["INPUT.CROP.SCHEME"]) == (True, "before_resize")
    assert (values["INPUT.CROP.TYPE"], values["INPUT.CROP.SIZE"]) == ("absolute", (384, 384))
    assert values["INPUT.MIN_SIZE_TRAIN"] == (320, 384, 448)
    assert (values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"]) == (1536, 2048)
    assert (values["TEST.TILE.SIZE"], values["TEST.TILE.OVERLAP"]) == (1536, 0.2)
    assert decided(records, name="InstanceFCN")["TEST.TILE.SIZE"] == 0
    data, cfg = fingerprint_of(records, ["a"]), load_config(RECIPES["BlendMask"].small)
    for key in ("INPUT.CROP.ENABLED", "INPUT.CROP.TYPE", "INPUT.CROP.SIZE", "INPUT.MIN_SIZE_TRAIN"):
        cfg.merge_from_list([key, values[key]])
    assert network_side(cfg, data) == 3000
    cfg.merge_from_list(["INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [0.9, 0.9]])
    assert network_side(cfg, data) == 384


def test_larger_objects_in_huge_photos_shrink():
    """Of 60 of 3000 pixels, 24 are enough: crops of 384 / 0.4. Such a crop has 0.32 of the image's side."""
    values = decided(several(20, (4000, 3000), 10, 60), name="InstanceFCN")
    assert values["INPUT.CROP.SIZE"] == (960, 960)
    # 34.3 x 0.32 / 0.02 and 34.3 / 0.02, one scale below and one above, at most 720 and 2048.
    assert values["INPUT.MIN_SIZE_TRAIN"] == (388, 549, 720)
    assert values["MODEL.INSTANCE_FCN.SCALES_TEST"] == (1213, 1715, 2048)


def test_small_images_are_enlarged_by_half():
    """Of objects of 8 of 100 pixels: 300 would be best, but 150 is the largest size that the images give."""
    values = decided(several(30, (100, 100), 5, 8))
    assert values["INPUT.MIN_SIZE_TRAIN"] == (96, 128, 160)
    assert values["INPUT.MIN_SIZE_TEST"] == 160


def test_long_images_keep_their_width():
    """10 : 1; at 192 pixels, an image of 384 x 1152 has as many as one of 12 : 1."""
    values = decided(several(30, (4000, 400), 10, 80))
    assert (values["INPUT.MIN_SIZE_TRAIN"], values["INPUT.MAX_SIZE_TRAIN"]) == ((160, 192, 224), 2240)


def test_crowded_images():
    """375 objects in one of ten images, 40 in the others: their 99 % quantile is 40 + 0.91 x 335, rounded up."""
    records = [*several(9, (500, 400), 40, 20), *several(1, (500, 400), 375, 20)]
    values = decided(records)
    assert values["TEST.DETECTIONS_PER_IMAGE"] == values["MODEL.FCOS.POST_NMS_TOPK_TEST"] == 450
    assert values["MODEL.FCOS.PRE_NMS_TOPK_TEST"] == 1800
    values = decided(records, name="EmbedMask")
    assert (values["TEST.DETECTIONS_PER_IMAGE"], values["MODEL.EMBED_MASK.PRE_NMS_TOP_N"]) == (450, 1800)
    values = decided(records, name="SparseInst", given={"INPUT.CROP.ENABLED": False})
    assert values["MODEL.SPARSE_INST.DECODER.NUM_MASKS"] == values["MODEL.SPARSE_INST.MAX_DETECTIONS"] == 460
    assert (values["SOLVER.IMS_PER_BATCH"], values["MODEL.SPARSE_INST.DECODER.GROUPS"]) == (2, 1)
    assert values["SOLVER.BASE_LR"] == pytest.approx(0.006 / 2**0.5, rel=1e-2)
    assert values["MODEL.SPARSE_INST.LOSS.PILOTS"] == 1  # 50 spots for 73.5 objects
    assert values["MODEL.SPARSE_INST.LOSS.CLASS_WEIGHT"] == 2.0
    values = decided(records, name="ISTR", given={"INPUT.CROP.ENABLED": False})
    assert (values["MODEL.ISTR.NUM_PROPOSALS"], values["TEST.DETECTIONS_PER_IMAGE"]) == (200, 200)
    assert decided(records, name="ISTR", base=RECIPES["ISTR"].large)["MODEL.ISTR.NUM_PROPOSALS"] == 550
    assert decided(records, name="InstanceFCN")["MODEL.INSTANCE_FCN.TOP_WINDOWS"] == 3000


def test_tiles_follow_given_values():
    """Objects of 25 pixels in images of 4000 x 3000: crops of 400 that become 384, and tiles of 1600 at 1536."""
    records = several(20, (4000, 3000), 10, 25)
    key = "TEST.TILE.SIZE", "INPUT.MIN_SIZE_TEST"

    def given(**values):
        found = decided(records, given={name.replace("__", "."): value for name, value in values.items()})
        return tuple(found.get(name) for name in key)

    assert given() == (1600, 1536)
    assert given(INPUT__MIN_SIZE_TEST=768) == (800, 768)
    assert given(TEST__TILE__SIZE=800) == (800, 768)
    assert given(TEST__TILE__SIZE=0) == (None, 1536)  # nothing to decide
    assert given(INPUT__CROP__SIZE=(200, 200)) == (800, 1536)
    assert given(INPUT__MIN_SIZE_TRAIN=(192,)) == (None, 1440)  # half the scale: whole images fit
    # Half of the image's side becomes 384; tiles are of this scale, too.
    assert given(INPUT__CROP__SIZE=(0.5, 0.5), INPUT__CROP__TYPE="relative") == (None, 768)
    whole = decided(several(20, (4000, 3000), 5, 500), given={"TEST.TILE.SIZE": 1000})
    assert (whole["INPUT.MIN_SIZE_TRAIN"], whole["INPUT.MIN_SIZE_TEST"]) == ((160, 192, 224), 64)


def test_images_that_stay_as_they_are():
    """A given side of 0: in the original size, 3000 pixels, for which there is room."""
    for records in (several(20, (4000, 3000), 10, 25), several(20, (4000, 3000), 5, 500)):
        values = decided(records, given={"INPUT.MIN_SIZE_TEST": 0})
        assert (values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"]) == (0, 4000)
        values = decided(records, given={"INPUT.MIN_SIZE_TRAIN": (0,)})
        assert values["INPUT.MIN_SIZE_TRAIN"] == (0,)
        assert values["INPUT.MAX_SIZE_TRAIN"] >= 4000


def test_a_few_large_images_have_tiles():
    """Eleven of 1400 x 1400 and nine of 4000 x 4000 pixels: the latter would shrink."""
    records = [*several(11, (1400, 1400), 10, 20), *several(9, (4000, 4000), 10, 20)]
    values = decided(records)
    assert (values["TEST.TILE.SIZE"], values["INPUT.MIN_SIZE_TEST"]) == (1536, 1536)


def test_models_without_tiles():
    """Of panoptic data."""
    values = decided(several(20, (4000, 3000), 10, 25), base="quick/blendmask_panoptic_shapes")
    assert values["INPUT.CROP.ENABLED"]
    assert "TEST.TILE.SIZE" not in values


def test_given_sizes_have_room():
    """640 pixels of images of 5 : 4; room is for 4 : 3."""
    values = decided(several(30, (500, 400), 5, 60), given={"INPUT.MIN_SIZE_TRAIN": (640,)})
    assert (values["INPUT.MAX_SIZE_TRAIN"], values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"]) == (
        864,
        640,
        864,
    )
    values = decided(several(30, (500, 400), 5, 60), given={"INPUT.MIN_SIZE_TEST": 640})
    assert values["INPUT.MAX_SIZE_TEST"] == 864


@pytest.mark.parametrize("key", ["INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST"])
def test_methods_follow_given_sizes(key):
    """Images of 500 x 400 with 120 objects; without a given size they would be smaller."""
    records = several(10, (500, 400), 120, 20)
    for name in ("SparseInst", "ISTR"):
        values = decided(records, name=name, given={key: (320,) if key.endswith("TRAIN") else 384})
        if key.endswith("TRAIN"):
            assert (values["INPUT.MIN_SIZE_TRAIN"], values["INPUT.MAX_SIZE_TRAIN"]) == ((320,), 448)
            assert values["INPUT.MIN_SIZE_TEST"] >= 320
        else:
            assert (values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"]) == (384, 512)
            assert values["INPUT.MIN_SIZE_TRAIN"] == (256, 288, 320)  # three quarters of 320, 384 and 448


def test_semantic_labels_are_not_mixed():
    """As of panoptic data; copy-paste is on in the small recipe of SparseInst."""
    records = several(10, (500, 400), 5, 60, classes=2)
    assert "INPUT.COPY_PASTE" not in decided(records, 2, name="SparseInst")
    records[3]["sem_seg_file_name"] = "labels.png"
    assert decided(records, 2, name="SparseInst")["INPUT.COPY_PASTE"] == 0
    assert {"INPUT.COPY_PASTE", "INPUT.MOSAIC.PROB"}.isdisjoint(decided(records, 2))


def test_rare_classes():
    """
    One class in all of 100 images, 80 others in one each: a typical label's class is in (100 x 100 + 80) / 180 = 56, a
    tenth of which is 0.056 of the images. Eighty classes that are equally frequent are not rare.
    """
    rare = [record(64, 64, [(0, 0, 30, 30, 0), (0, 0, 30, 30, 1 + min(i, 80))]) for i in range(100)]
    for image in rare[80:]:
        del image["annotations"][1]
    values = decided(rare, 81)
    assert values["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler"
    assert values["DATALOADER.REPEAT_THRESHOLD"] == 0.056
    equal = several(160, (64, 64), 1, 30, classes=80)
    assert decided(equal, 80)["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler"


def test_little_memory():
    """
    448 x 608 pixels of 1500 bytes are 0.3805 GiB: 0.7 of 2.2 GiB hold four of them, of 1 GiB 1.8 without and 3.1 with
    activation checkpointing, and of 0.1 GiB none.
    """
    records, checkpointing = several(50, (1000, 900), 3, 40), "MODEL.ACTIVATION_CHECKPOINTING"
    values = decided(records, machine=Machine(gpu=False, memory=2.2))
    assert (values["INPUT.MIN_SIZE_TRAIN"], values["INPUT.MAX_SIZE_TRAIN"]) == ((320, 384, 448), 608)
    assert (values["SOLVER.IMS_PER_BATCH"], checkpointing in values) == (4, False)
    values = decided(records, machine=Machine(gpu=False, memory=1.0))
    assert (values["SOLVER.IMS_PER_BATCH"], values[checkpointing]) == (2, ["backbone", "heads"])
    values_of_rcnn = decided(records, machine=Machine(gpu=False, memory=1.0), base="quick/maskrcnn_shapes")
    assert values_of_rcnn[checkpointing] == ["backbone"]
    assert values["SOLVER.BASE_LR"] == 0.00424  # of 0.006, the root of 1 / 2
    values = decided(records, machine=Machine(gpu=False, memory=0.1, processes=2))
    assert values["SOLVER.IMS_PER_BATCH"] == 2
    values = decided(records, machine=Machine(gpu=False, memory=8.0, processes=3))
    assert (values["SOLVER.IMS_PER_BATCH"], checkpointing in values) == (3, False)


def test_a_gpu_and_much_data():
    """3200 images, 24 times, in batches of 16; the steps of the authors' schedule keep their places."""
    values = decided(several(3200, (640, 480), 2, 60), machine=GPU, base=RECIPES["BlendMask"].large)
    assert (values["SOLVER.IMS_PER_BATCH"], values["SOLVER.BASE_LR"]) == (16, 0.01)
    assert (values["SOLVER.MAX_ITER"], values["SOLVER.STEPS"]) == (4800, (3734, 4445))
    assert (values["DATALOADER.NUM_WORKERS"], values["SEED"]) == (8, 1)


def test_given_values_are_followed():
    """From steps at 70 and 80 of 90 thousand, and from batches of 16 and 4 images; whole images instead of crops."""
    records, large = several(3200, (640, 480), 2, 60), RECIPES["BlendMask"].large
    given = {"SOLVER.MAX_ITER": 600, "SOLVER.IMS_PER_BATCH": 8, "INPUT.MIN_SIZE_TRAIN": (320,)}
    values = decided(records, machine=GPU, base=large, given=given)
    assert {key: values[key] for key in given} == given
    assert (values["SOLVER.STEPS"], values["SOLVER.WARMUP_ITERS"], values["SOLVER.BASE_LR"]) == ((467, 556), 100, 0.005)
    assert decided(records, machine=GPU, base=large, given={"SOLVER.IMS_PER_BATCH": 8})["SOLVER.MAX_ITER"] == 9600
    values = decided(several(20, (4000, 3000), 10, 20), given={"INPUT.CROP.ENABLED": False})
    assert (values["INPUT.CROP.ENABLED"], "INPUT.CROP.SIZE" in values) == (False, False)
    assert (values["INPUT.MIN_SIZE_TRAIN"], values["INPUT.MAX_SIZE_TRAIN"]) == ((320, 384, 448), 608)
    values = decided(several(10, (500, 400), 120, 20), name="ISTR", given={"SOLVER.IMS_PER_BATCH": 16})
    few = decided(several(10, (500, 400), 4, 20), name="ISTR")
    assert values["SOLVER.BASE_LR"] == pytest.approx(few["SOLVER.BASE_LR"] * 2, rel=1e-2)
    assert values["SOLVER.MAX_ITER"] == 600


def test_the_whole_schedule_follows(tmp_path):
    """600 iterations instead of 2400, whatever they count."""
    base = tmp_path / "base.yaml"
    base.write_text(
        f"_BASE_: {find_recipe(RECIPES['BlendMask'].small)}\n"
        "SOLVER: {MAX_ITER: 2400, STEPS: [1600], FREEZE_NORMS_ITER: 1200, FREEZE_BACKBONE_ITER: 400}\n"
        "TEST: {EVAL_PERIOD: 800}\n"
    )
    values = decided(several(20, (640, 480), 2, 60), base=str(base))
    assert (values["SOLVER.MAX_ITER"], values["SOLVER.STEPS"]) == (600, (400,))
    assert (values["SOLVER.FREEZE_NORMS_ITER"], values["SOLVER.FREEZE_BACKBONE_ITER"]) == (300, 100)
    assert values["TEST.EVAL_PERIOD"] == 200
    base.write_text(base.read_text().replace("800", "8"))
    assert decided(several(20, (640, 480), 2, 60), base=str(base))["TEST.EVAL_PERIOD"] == 60  # ten evaluations
    base.write_text(f"_BASE_: {find_recipe(RECIPES['BlendMask'].small)}\nSOLVER: {{FREEZE_BACKBONE_ITER: 400}}\n")
    assert "SOLVER.FREEZE_BACKBONE_ITER" not in decided(several(20, (640, 480), 2, 60), base=str(base))  # stays 400


def test_given_crops_are_followed():
    """Of 1024 pixels, although the objects are large: they become 192, so tests are at 3000 x 192 / 1024."""
    given = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": (1024, 1024)}
    values = decided(several(20, (4000, 3000), 3, 500), given=given)
    assert values["INPUT.MIN_SIZE_TRAIN"] == (160, 192, 224)
    assert values["INPUT.MIN_SIZE_TEST"] == 576
    relative = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "relative_range", "INPUT.CROP.SIZE": (0.9, 0.9)}
    records, key = several(20, (640, 480), 3, 200), "INPUT.MIN_SIZE_TRAIN"
    assert decided(records, name="InstanceFCN", given=relative)[key] == decided(records, name="InstanceFCN")[key]
    plain = decided(records)
    for crops in (relative, {"INPUT.CROP.ENABLED": True}, relative | {"INPUT.CROP.TYPE": "absolute_range"}):
        values = decided(records, given=crops)  # not of one size, so the images are as large as without
        assert (values[key], values["INPUT.MIN_SIZE_TEST"]) == (plain[key], plain["INPUT.MIN_SIZE_TEST"])
        assert "INPUT.CROP.SIZE" not in values or values["INPUT.CROP.SIZE"] == crops["INPUT.CROP.SIZE"]


def test_sizes_replace_other_ways_to_resize():
    """Ranges of two sizes, and large-scale jitter."""
    records = several(20, (640, 480), 2, 60)
    assert decided(records, base="BlendMask/R_101_dcni3_5x")["INPUT.MIN_SIZE_TRAIN_SAMPLING"] == "choice"
    assert decided(records, base="ISTR/ISTR-AE-SwinL-LSJ-3x")["LSJ_AUG"] is False
    assert "LSJ_AUG" not in decided(records)
    given = {"INPUT.MIN_SIZE_TRAIN": (256, 608)}
    assert "INPUT.MIN_SIZE_TRAIN_SAMPLING" not in decided(records, base="BlendMask/R_101_dcni3_5x", given=given)


def test_the_base():
    few, many = (fingerprint_of(several(n, (64, 64), 1, 20), ["a"]) for n in (50, 1000))
    auto = RECIPES["EmbedMask"]
    assert _base(auto, many, GPU)[0] == auto.large
    assert _base(auto, few, GPU)[0] == _base(auto, many, LAPTOP)[0] == auto.small


@pytest.mark.parametrize("missing", ["", "no package x"])
def test_where_pretrained_weights_are_a_better_start(monkeypatch, missing):
    """With photos for all methods, otherwise for some; and only if there are any."""
    monkeypatch.setattr("instseg_d2.engine.auto.plan._missing_weights", lambda recipe: missing)
    grey = fingerprint_of(several(50, (64, 64), 1, 20), ["a"])
    photos = dataclasses.replace(grey, photos=0.9)
    assert grey.photos == 0
    for name, auto in RECIPES.items():
        for data, wanted in ((grey, name in ("ISTR", "SparseInst")), (photos, True)):
            base, reason = _base(auto, data, LAPTOP)
            assert base == (auto.photos if wanted and not missing else auto.small)
            assert (missing in reason) == (wanted or not missing)
            assert ("ImageNet's weights" in reason) == wanted
