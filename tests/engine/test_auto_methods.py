"""The methods' own rules of recipes that configure themselves: decisions derived by hand."""

import pytest

from instseg_d2.config import load_config
from instseg_d2.config.recipes import find_recipe
from instseg_d2.data.fingerprint import fingerprint_of
from instseg_d2.engine.auto import Machine
from instseg_d2.modeling.recipe_rules import no_coarse_map_reason, objects_seen
from tests.auto_rules import RECIPES, decided, several
from tests.fingerprints import record


def test_queries_see_crops_of_crowded_images():
    """
    Squares of 400 x 400 / 100 = 40 x 40 pixels have one object, 160 x 160 have 16. Objects of 20 pixels should become
    24, and the crop 192. Tiles share 0.2 of their side, 32 pixels, which is more than an object.
    """
    records = several(10, (400, 400), 100, 20)
    for name in ("SparseInst", "ISTR"):
        values = decided(records, name=name)
        assert (values["INPUT.CROP.ENABLED"], values["INPUT.CROP.SIZE"]) == (True, (160, 160))
        assert (values["INPUT.MIN_SIZE_TRAIN"], values["INPUT.MIN_SIZE_TEST"]) == ((160, 192, 224), 224)
        assert (values["TEST.TILE.SIZE"], values["TEST.TILE.OVERLAP"]) == (160, 0.2)
        assert values["TEST.DETECTIONS_PER_IMAGE"] == 150
        assert values.get("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]) == ["res3", "res4"]  # 20 pixels become 24
    assert values["MODEL.ISTR.NUM_PROPOSALS"] == 50  # 1.5 times twice 16
    assert values["MODEL.ISTR.PILOTS"] == 1  # 20 for twice 16
    assert "INPUT.CROP.SIZE" not in decided(records)
    huge = several(10, (4000, 4000), 120, 20)  # crops of 384 pixels at their own size, which have a few objects
    assert decided(huge, name="ISTR")["INPUT.CROP.SIZE"] == decided(huge)["INPUT.CROP.SIZE"] == (384, 384)
    values = decided(huge, name="SparseInst", base=RECIPES["SparseInst"].large)
    assert (values["TEST.TILE.SIZE"], values["MODEL.SPARSE_INST.DECODER.NUM_MASKS"]) == (384, 100)
    values = decided(huge, name="SparseInst")
    assert (values["TEST.TILE.SIZE"], values["INPUT.MIN_SIZE_TEST"]) == (384, 448)


def test_crops_where_a_few_images_are_dense():
    """
    90 objects in 97 images of 400 x 400, 900 in three: 42 pixels between objects, and 13.3. Crops of 4 x 42 have 159
    objects in the densest images; so many slots would make a step expensive.
    """
    records = [*several(97, (400, 400), 90, 12), *several(3, (400, 400), 900, 12)]
    values = decided(records, name="SparseInst")
    assert values["INPUT.CROP.SIZE"] == (168, 168)
    assert values["MODEL.SPARSE_INST.DECODER.NUM_MASKS"] == 100
    assert decided(records, name="ISTR")["MODEL.ISTR.NUM_PROPOSALS"] == 50


@pytest.mark.parametrize(("side", "length"), [(8, 150), (400, 0)])
def test_no_crops_that_cut_most_objects(side, length):
    """A fifth of the objects is 150 pixels long: crops would have 375, of images of 400."""
    boxes = [(0, 0, 8, length if i % 5 == 0 else 8, 0) for i in range(120)] if length else [(0, 0, side, side, 0)] * 120
    values = decided([record(400, 400, boxes) for _ in range(10)], name="SparseInst")
    assert not values["INPUT.CROP.ENABLED"]
    assert "TEST.TILE.SIZE" not in values


def test_objects_in_tiles():
    """
    Tiles of 80 pixels. In nine of ten images objects are 40 pixels apart, in one 20: 4 and 16 objects in a tile, twice
    as many where they are dense. The 5 % quantile of the distances is 29 pixels.
    """
    records = [*several(9, (400, 400), 100, 20), *several(1, (400, 400), 400, 20)]
    data, cfg = fingerprint_of(records, ["a"]), load_config("")
    assert objects_seen(cfg, data) == (130, data.q99_objects, 400)
    cfg.TEST.TILE.SIZE = 80
    assert objects_seen(cfg, data) == (8, 16, 16)


def test_pilots_by_the_number_of_objects():
    """50 spots for 10 objects of two classes."""
    values = decided(several(10, (500, 400), 10, 60, classes=2), 2, name="SparseInst")
    assert values["MODEL.SPARSE_INST.LOSS.PILOTS"] == 5
    assert values["INPUT.MIN_SIZE_TEST"] == values["INPUT.MIN_SIZE_TRAIN"][-1]
    assert "MODEL.SPARSE_INST.LOSS.CLASS_WEIGHT" not in values


@pytest.mark.parametrize(("objects", "pilots"), [(2, 4), (5, 4), (10, 2), (40, 1)])
def test_pilots_of_queries(objects, pilots):
    """20 in an image, at most 4 for each object."""
    assert decided(several(10, (500, 400), objects, 60), name="ISTR")["MODEL.ISTR.PILOTS"] == pilots


def test_a_given_number_of_queries():
    """60 for 150 objects, which would have 200."""
    given = {"MODEL.ISTR.NUM_PROPOSALS": 60, "INPUT.CROP.ENABLED": False}
    values = decided(several(10, (500, 400), 150, 20), name="ISTR", given=given)
    assert (values["MODEL.ISTR.NUM_PROPOSALS"], values["TEST.DETECTIONS_PER_IMAGE"]) == (60, 100)
    assert values["SOLVER.IMS_PER_BATCH"] == 4  # no cheaper steps


def test_copy_paste_needs_slots_for_two_images():
    key = "INPUT.COPY_PASTE"
    assert key not in decided(several(10, (500, 400), 20, 60, classes=2), 2, name="SparseInst")  # 40 slots
    assert decided(several(10, (500, 400), 21, 60, classes=2), 2, name="SparseInst")[key] == 0


def test_a_class_without_objects_does_not_count():
    values = decided(several(10, (500, 400), 10, 60), 2, name="SparseInst")
    assert values["MODEL.SPARSE_INST.LOSS.CLASS_WEIGHT"] == 2.0


@pytest.mark.parametrize("base", ["Base-quick-istr", "istr_nuclei", "istr_photos"])
@pytest.mark.parametrize(
    ("count", "side", "levels"), [(5, 12, "2345"), (5, 60, "345"), (100, 20, "34"), (150, 9, "234")]
)
def test_maps_by_the_size_of_the_objects(base, count, side, levels):
    """The base recipes have p3 and p4, and p5 but for that of nuclei; of 100 objects in an image, crops see some."""
    values = decided(several(30, (500, 400), count, side), name="ISTR", base=f"quick/{base}")
    key = "MODEL.TIMM.OUT_FEATURES" if base == "istr_photos" else "MODEL.RESNETS.OUT_FEATURES"
    maps = [f"p{level}" for level in levels]
    names = [f"res{level}" for level in levels]
    assert values.get("MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5"][: 2 if base == "istr_nuclei" else 3]) == maps
    if "MODEL.ROI_HEADS.IN_FEATURES" in values:
        assert values[key] == values["MODEL.FPN.IN_FEATURES"] == names


def test_given_maps_stay():
    records = several(30, (500, 400), 100, 20)
    for key in ("MODEL.RESNETS.OUT_FEATURES", "MODEL.FPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES"):
        assert key in decided(records, name="ISTR")
        given = {key: ["p3", "p4", "p5"] if "HEADS" in key else ["res3", "res4", "res5"]}
        assert not any("FEATURES" in key for key in decided(records, name="ISTR", given=given))


def test_long_objects_need_a_coarse_map():
    """Crops of 200 pixels become 192: objects of 90 and 110 pixels become 86 and 106."""
    cfg = load_config(RECIPES["ISTR"].small)
    cfg.INPUT.MIN_SIZE_TRAIN = (192,)
    short, long = (fingerprint_of(several(10, (500, 400), 5, side), ["a"]) for side in (90, 110))
    assert not no_coarse_map_reason(cfg, short)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [200, 200]
    assert "86 pixels" in no_coarse_map_reason(cfg, short)
    assert not no_coarse_map_reason(cfg, long)


def test_mosaics_of_few_images():
    key = "INPUT.MOSAIC.PROB"
    assert decided(several(199, (64, 64), 1, 30))[key] == decided(several(999, (64, 64), 20, 30))[key] == 0.5
    assert key not in decided(several(200, (64, 64), 19, 30))
    assert key not in decided(several(1000, (64, 64), 20, 30))
    assert key not in decided(several(10, (64, 64), 1, 30), name="EmbedMask")


@pytest.mark.parametrize(("processes", "batch"), [(1, 2), (3, 3), (4, 4)])
def test_cheaper_batches_divide_among_the_processes(processes, batch):
    records = several(10, (500, 400), 120, 20)
    machine = Machine(gpu=False, memory=8.0, processes=processes)
    for name in ("SparseInst", "ISTR"):
        values = decided(records, name=name, machine=machine, given={"INPUT.CROP.ENABLED": False})
        assert values["SOLVER.IMS_PER_BATCH"] == batch


def test_scales_of_windows():
    """Longer sides of 0.1 and 0.4 of the image are 48 pixels at 480 and 120, and between these at the roots of 2."""
    records = [record(300, 300, [(0, 0, side, 20, 0)] * 10) for side in (30, 120) * 5]
    values = decided(records, name="InstanceFCN")
    assert values["INPUT.MIN_SIZE_TRAIN"] == values["MODEL.INSTANCE_FCN.SCALES_TEST"] == (120, 170, 240, 339, 480)
    assert values["INPUT.MIN_SIZE_TEST"] == 0


def test_a_given_schedule_stays_in_smaller_batches(tmp_path):
    """600 iterations instead of 2400; batches of two instead of four would have 1200."""
    base = tmp_path / "base.yaml"
    base.write_text(
        f"_BASE_: {find_recipe(RECIPES['SparseInst'].small)}\n"
        "SOLVER: {MAX_ITER: 2400, STEPS: [1600], FREEZE_NORMS_ITER: 1200, FREEZE_BACKBONE_ITER: 400}\n"
    )
    records, given = several(3, (640, 480), 192, 35), {"INPUT.CROP.ENABLED": False}
    values = decided(records, base=str(base), given=given | {"SOLVER.MAX_ITER": 600})
    assert (values["SOLVER.STEPS"], values["SOLVER.FREEZE_NORMS_ITER"]) == ((400,), 300)
    values = decided(records, base=str(base), given=given | {"SOLVER.FREEZE_BACKBONE_ITER": 7})
    assert (values["SOLVER.IMS_PER_BATCH"], values["SOLVER.FREEZE_BACKBONE_ITER"]) == (2, 7)
    assert (values["SOLVER.MAX_ITER"], values["SOLVER.FREEZE_NORMS_ITER"]) == (1200, 600)


def test_the_scale_of_the_classifier():
    """One of those of the test, also if one of the two is given."""
    base, key = "InstanceFCN/VGG16_k5_classified", "MODEL.INSTANCE_FCN"
    for given in ({}, {f"{key}.SCALES_TEST": (300, 600)}, {f"{key}.CLASSIFIER_SCALE": 500}):
        values = given | decided(several(20, (640, 480), 2, 60), base=base, given=given) | given
        assert values[f"{key}.CLASSIFIER_SCALE"] in values[f"{key}.SCALES_TEST"]
    assert values[f"{key}.CLASSIFIER_SCALE"] == 500


def test_maps_of_a_semantic_head_stay():
    """Objects of 20 pixels need no level above p3; the semantic head reads more."""
    base = "quick/blendmask_panoptic_shapes"
    records = several(20, (320, 240), 3, 20)
    read = load_config(base).MODEL.SEM_SEG_HEAD.IN_FEATURES
    levels = decided(records, base=base)["MODEL.FCOS.IN_FEATURES"]
    assert set(read) <= set(levels)
    assert len(decided(records)["MODEL.FCOS.IN_FEATURES"]) < len(levels)


def test_anchors_and_proposals():
    """
    In images of 384 of 480 pixels, objects of 20 become 16, where the smallest of five anchors begins; three proposals
    for each of 400. The base's are enough for 5.
    """
    base = "quick/maskrcnn_shapes"
    values = decided(several(20, (640, 480), 400, 20), base=base)
    side = values["INPUT.MIN_SIZE_TRAIN"][1]
    assert round(20 * side / 480) == 16
    assert values["MODEL.ANCHOR_GENERATOR.SIZES"] == [[16], [32], [64], [128], [256]]
    assert values["MODEL.RPN.PRE_NMS_TOPK_TEST"] == values["MODEL.RPN.POST_NMS_TOPK_TRAIN"] == 1200
    values = decided(several(20, (640, 480), 5, 240), base=base)
    assert values["MODEL.ANCHOR_GENERATOR.SIZES"][0] == [32]
    assert not any(key.startswith("MODEL.RPN") for key in values)


def test_proposals_of_fcos():
    """Levels p3 and p4 for objects of at most 48 pixels; the ROI heads read p5, too. 3 x 400 proposals."""
    values = decided(several(20, (640, 480), 400, 20), base="MaskRCNN-heads/blend_fcos_mask_rcnn_R_50_FPN_1x")
    assert values["MODEL.FCOS.IN_FEATURES"] == ["p3", "p4", "p5"]
    assert values["MODEL.FCOS.POST_NMS_TOPK_TEST"] == 1200
    assert values["MODEL.FCOS.SIZES_OF_INTEREST"][0] < 64


def test_heads_without_proposals():
    """Slots and queries for 400 objects: 1.2 and 1.5 times as many."""
    records = several(20, (640, 480), 400, 20)
    values = decided(records, base="MaskRCNN-heads/sparse_inst_rcnn_R_50_1x")
    assert values["MODEL.SPARSE_INST.DECODER.NUM_MASKS"] == values["MODEL.SPARSE_INST.MAX_DETECTIONS"] == 480
    assert decided(records, base="MaskRCNN-heads/istr_rcnn_R_50_FPN_1x")["MODEL.ISTR.NUM_PROPOSALS"] == 600
