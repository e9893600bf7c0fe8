"""The rules of recipes that configure themselves: decisions derived by hand."""

import dataclasses

import pytest

from instseg_d2.config import load_config
from instseg_d2.config.recipes import find_recipe
from instseg_d2.data.fingerprint import fingerprint_of, network_side
from instseg_d2.engine.auto import Machine, shared_rules
from instseg_d2.engine.auto.plan import _base
from instseg_d2.methods import method_of, methods
from instseg_d2.modeling.recipe_rules import no_coarse_map_reason, objects_seen
from tests.fingerprints import record

LAPTOP, GPU = Machine(gpu=False, memory=8.0), Machine(gpu=True, memory=80.0, cores=16)
RECIPES = {method.name: method.auto for method in methods() if method.auto and method.auto.small}


def several(images, size, objects, side, classes=1):
    """``images`` of a size with so many square objects each, of the classes in turn."""
    boxes = [(0, 0, side, side) for _ in range(objects)]
    return [record(*size, [(*box, (i + j) % classes) for j, box in enumerate(boxes)]) for i in range(images)]


def decided(records, classes=1, name="BlendMask", machine=LAPTOP, base=None, given=None):
    """The values of all rules, with values given."""
    data = fingerprint_of(records, [f"class {i}" for i in range(classes)])
    cfg = load_config(base or RECIPES[name].small)
    small = cfg.SOLVER.IMS_PER_BATCH < 8
    given = given or {}
    found = dict(shared_rules(cfg, data, machine, small, given))
    for key, (value, _) in found.items():
        cfg.merge_from_list([key, value])
    unit = given.get("SOLVER.IMS_PER_BATCH", machine.processes)
    found |= method_of(cfg).auto.rules(cfg, data, small, unit, given)
    assert all(reason for _, reason in found.values())
    return {key: value for key, (value, _) in found.items()}


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


def test_models_without_tiles():
    """Of panoptic data."""
    values = decided(several(20, (4000, 3000), 10, 25), base="quick/blendmask_panoptic_shapes")
    assert values["INPUT.CROP.ENABLED"]
    assert "TEST.TILE.SIZE" not in values


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


def test_mosaics_of_few_images():
    key = "INPUT.MOSAIC.PROB"
    assert decided(several(199, (64, 64), 1, 30))[key] == decided(several(999, (64, 64), 20, 30))[key] == 0.5
    assert key not in decided(several(200, (64, 64), 19, 30))
    assert key not in decided(several(1000, (64, 64), 20, 30))
    assert key not in decided(several(10, (64, 64), 1, 30), name="EmbedMask")


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
