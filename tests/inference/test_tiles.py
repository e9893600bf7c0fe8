"""Tiles: where they lie, and how objects cut by their seams are joined. The image itself tells what is to be found."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from instseg_d2.errors import ConfigError
from instseg_d2.inference.image_predictor import ImagePredictor, to_rgb
from instseg_d2.inference.predictor import Predictor
from instseg_d2.inference.seams import merge_tiles
from instseg_d2.inference.tiles import TiledPredictor, tile_boxes
from instseg_d2.modeling.postprocessing import MASK_FORMATS, RunLengthMasks, masks_to_boxes, set_mask_format
from tests.bright_spots import CLASS_NAMES, save_checkpoint, spots_config


class Painted(ImagePredictor):
    """Finds every value of red as an object, of the class that green says; the score is blue / 255."""

    class_names, category_ids, input_format, resize = ["a", "b", "c"], {0: 7}, "RGB", None

    on_cpu = False

    def __init__(self, masks=True, batches=True):
        self.batches = batches
        self.masks, self.calls, self.sizes = masks, [], set()

    def preprocess(self, image, channel_order="BGR"):
        rgb = to_rgb(image, channel_order)
        return {"image": rgb, "height": rgb.shape[0], "width": rgb.shape[1]}

    def outputs(self, inputs, score_threshold=0.0, masks="full"):
        self.calls.append(len(inputs))
        return [{"instances": self.found(x["image"], score_threshold, masks)} for x in inputs]

    def found(self, rgb, score_threshold, masks):
        self.sizes.add(rgb.shape[:2])
        values = [value for value in np.unique(rgb[..., 0]) if value]
        seen = np.array([rgb[..., 0] == value for value in values], bool).reshape(-1, *rgb.shape[:2])
        pixels = np.array([rgb[mask][0] for mask in seen]).reshape(-1, 3)
        result = Instances(rgb.shape[:2], pred_masks=torch.from_numpy(seen))
        result.pred_boxes = Boxes(masks_to_boxes(result.pred_masks))
        result.scores = torch.from_numpy(pixels[:, 2].astype(np.float32) / 255)
        result.pred_classes = torch.from_numpy(pixels[:, 1].astype(np.int64))
        result = result[result.scores >= score_threshold]
        if not self.masks:
            result.remove("pred_masks")
        return set_mask_format(result, masks)


def painted(height, width, *objects):
    """An image of objects (x1, y1, x2, y2[, class[, blue]]), later ones on top."""
    image = np.zeros((height, width, 3), np.uint8)
    for value, (x1, y1, x2, y2, *rest) in enumerate(objects, 1):
        image[y1:y2, x1:x2] = (value, *(*rest, *(0, 204)[len(rest) :]))
    return image


def boxes_of(instances):
    return sorted(map(tuple, instances.pred_boxes.tensor.int().tolist()))


def in_tiles(image, tile=64, overlap=0.25, masks=True, **arguments):
    found = TiledPredictor(Painted(masks), tile, overlap, **arguments)(image, "RGB")
    assert found.image_size == image.shape[:2]
    return found


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "expected"),
    [
        ((60, 64), 64, 0.25, [(0, 0, 64, 60)]),
        ((64, 112), 64, 0.25, [(0, 0, 64, 64), (48, 0, 112, 64)]),
        ((20, 65), 64, 0.25, [(0, 0, 64, 20), (1, 0, 65, 20)]),
        ((128, 64), 64, 0, [(0, 0, 64, 64), (0, 64, 64, 128)]),
        ((100, 100), 64, 0, [(x, y, x + 64, y + 64) for y in (0, 36) for x in (0, 36)]),
    ],
)
def test_where_the_tiles_lie(size, tile, overlap, expected):
    assert tile_boxes(size, tile, overlap) == expected


def test_tiles_cover_every_pixel_and_overlap_enough():
    for length, tile, overlap in itertools.product((1, 63, 64, 65, 200, 1001), (32, 64), (0, 0.2, 0.5, 0.75)):
        tiles = tile_boxes((length, 10), tile, overlap)
        assert {(x1, x2, y2 - y1) for x1, y1, x2, y2 in tiles} == {(0, 10, min(tile, length))}
        assert (tiles[0][1], tiles[-1][3]) == (0, length)
        for (*_, end), (_, start, *_) in itertools.pairwise(tiles):
            assert end - start >= tile * overlap
        step = tile - int(np.ceil(tile * overlap))
        assert len(tiles) == len(range(0, max(length - tile, 0) + step, step)[: None if length > tile else 1])


ONE = [
    ((40, 20, 80, 40),),  # over a seam
    ((10, 10, 100, 100),),  # over four tiles
    ((3, 30, 157, 34),),  # thin, over three tiles
    ((50, 50, 62, 62),),  # four tiles see all of it
    ((50, 20, 60, 30),),  # two do
    ((0, 0, 160, 160),),  # the whole image
    ((100, 5, 105, 150),),
]
SEVERAL = [
    ((40, 20, 80, 40), (40, 40, 80, 60)),  # two that touch, both over the seam
    ((40, 20, 56, 40), (56, 20, 80, 40)),  # two that touch inside the strip
    ((40, 20, 64, 40), (64, 20, 80, 40)),  # at the border of a tile
    ((40, 20, 48, 40), (48, 20, 80, 40)),
    ((40, 20, 80, 40), (50, 25, 60, 35, 1)),  # one upon the other, of other classes
    ((10, 48, 150, 56), (10, 56, 150, 64), (10, 64, 150, 72)),
    ((47, 47, 48, 48), (63, 63, 64, 64), (64, 64, 65, 65)),
]


@pytest.mark.parametrize(
    ("overlap", "objects"), [*((x, y) for x in (0.25, 0.5) for y in ((), *ONE, *SEVERAL)), (0.7, ONE[1]), (0.7, ONE[6])]
)
def test_objects_are_joined_as_if_seen_at_once(overlap, objects):
    image = painted(160, 160, *objects)
    expected = Painted()(image, "RGB")
    found = in_tiles(image, overlap=overlap)
    assert len(found) == len(objects)
    order, wanted = (sorted(range(len(x)), key=lambda i: x.pred_boxes.tensor[i].tolist()) for x in (found, expected))
    assert torch.equal(found.pred_masks[order], expected.pred_masks[wanted])
    assert torch.equal(found.pred_boxes.tensor[order], expected.pred_boxes.tensor[wanted])
    assert torch.equal(found.pred_classes[order], expected.pred_classes[wanted])
    torch.testing.assert_close(found.scores, torch.full((len(objects),), 0.8))


@pytest.mark.parametrize("objects", ONE + SEVERAL[:1] + SEVERAL[4:6])
def test_boxes_without_masks(objects):
    found = in_tiles(painted(160, 160, *objects), masks=False)
    assert not found.has("pred_masks")
    assert boxes_of(found) == sorted(x[:4] for x in objects)


def test_without_overlap_objects_stay_in_pieces():
    found = in_tiles(painted(64, 128, (40, 20, 80, 40)), overlap=0)
    assert boxes_of(found) == [(40, 20, 64, 40), (64, 20, 80, 40)]


@pytest.mark.parametrize("limit", [20, 64, 100])
def test_a_limit(limit):
    """64 objects that all of the four tiles see: the best of them, not of the detections."""
    corners = [(26 + 9 * (i % 8), 26 + 9 * (i // 8)) for i in range(64)]
    image = painted(120, 120, *((x, y, x + 5, y + 5, 0, 100 + i) for i, (x, y) in enumerate(corners)))
    found = in_tiles(image, tile=100, overlap=0.2, limit=limit)
    expected = sorted((*corner, *(side + 5 for side in corner)) for corner in corners[-limit:])
    assert boxes_of(found) == expected


def test_images_that_fit_into_a_tile_are_not_cut():
    image = painted(64, 50, (40, 20, 45, 40))
    plain = Painted()
    record = TiledPredictor(plain, 64).preprocess(image, "RGB")
    assert record.keys() == {"image", "height", "width"}
    assert boxes_of(in_tiles(image)) == [(40, 20, 45, 40)]


def test_tiles_are_as_low_as_the_image():
    plain = Painted()
    found = TiledPredictor(plain, 64, 0.25)(painted(20, 200, (40, 2, 190, 18)), "RGB")
    assert plain.sizes == {(20, 64)}
    assert boxes_of(found) == [(40, 2, 190, 18)]


def test_batches_formats_and_mixed_images():
    large, small = painted(112, 160, (10, 5, 150, 15), (5, 40, 20, 60, 1, 102)), painted(30, 40, (1, 2, 3, 4))
    plain = Painted()
    tiled = TiledPredictor(plain, 64, 0.25, batch=4)
    assert (tiled.batches, tiled.on_cpu) == (False, False)
    records = [tiled.preprocess(x, "RGB") for x in (small, large, small, large)]
    whole = tiled.predict(records)
    assert sorted(plain.calls) == [2, 2, 2, 4, 4]  # six tiles each
    one_by_one = Painted(batches=False)
    TiledPredictor(one_by_one, 64, 0.25, batch=4).predict(records[1:2])
    assert one_by_one.calls == [1] * 6
    assert [boxes_of(x) for x in whole[:2]] == [[(1, 2, 3, 4)], [(5, 40, 20, 60), (10, 5, 150, 15)]]
    assert whole[1].scores.tolist() == pytest.approx([0.8, 0.4])
    assert whole[1].pred_classes.tolist() == [0, 1]
    for masks in MASK_FORMATS:
        for found, expected in zip(tiled.predict(records, 0.5, masks), whole):
            expected = set_mask_format(expected[expected.scores >= 0.5], masks)
            assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert found.has("pred_masks") == (masks != "none")
            if masks == "full":
                assert torch.equal(found.pred_masks, expected.pred_masks)
            elif masks == "run_lengths":
                assert found.pred_masks.codes == expected.pred_masks.codes
    assert (tiled.class_name(1), tiled.category_id(0)) == ("b", 7)
    with pytest.raises(ValueError, match="masks is 'all'"):
        tiled.outputs(records, masks="all")


TWO_TILES = [(0, 0, 100, 50), (80, 0, 180, 50)]  # the strip: 80 to 100


def joined(first, second, with_masks=True):
    """Two tiles' detections (x1, y1, x2, y2, score[, class]) in pixels of the image, joined."""
    found = []
    for (left, top, right, bottom), detections in zip(TWO_TILES, (first, second)):
        masks = torch.zeros(len(detections), bottom - top, right - left, dtype=torch.bool)
        for mask, (x1, y1, x2, y2, *_) in zip(masks, detections):
            mask[y1:y2, x1 - left : x2 - left] = True
        instances = Instances(masks.shape[1:], pred_boxes=Boxes(masks_to_boxes(masks)))
        instances.scores = torch.tensor([x[4] for x in detections])
        instances.pred_classes = torch.tensor([x[5] if len(x) > 5 else 0 for x in detections], dtype=torch.int64)
        if with_masks:
            instances.pred_masks = RunLengthMasks.encode(masks)
        found.append(instances)
    return merge_tiles(found, TWO_TILES, (50, 180))


def listed(instances):
    boxes = instances.pred_boxes.tensor.int().tolist()
    return [(*box, round(score, 4)) for box, score in zip(boxes, instances.scores.tolist())]


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # cut on both sides: 40 and 20 columns; (40 x 0.9 + 20 x 0.6) / 60
        ([(60, 10, 100, 20, 0.9)], [(80, 10, 100, 20, 0.6)], [(60, 10, 100, 20, 0.8)]),
        # the first tile's mask is imperfect: on the strip 15 of 20 rows agree
        ([(60, 15, 100, 30, 0.9)], [(80, 10, 120, 30, 0.9)], [(60, 10, 120, 30, 0.9)]),
        # 9 of 20 rows: two objects
        ([(60, 21, 100, 30, 0.9)], [(80, 10, 120, 30, 0.8)], [(60, 21, 100, 30, 0.9), (80, 10, 120, 30, 0.8)]),
        # the second tile sees all of it, the first one a part
        ([(85, 10, 100, 20, 0.9)], [(85, 10, 120, 20, 0.7)], [(85, 10, 120, 20, 0.7)]),
        # both see all of it: the better one
        ([(85, 10, 95, 20, 0.6)], [(85, 10, 94, 20, 0.7)], [(85, 10, 94, 20, 0.7)]),
        # other classes
        ([(85, 10, 95, 20, 0.7, 1)], [(85, 10, 95, 20, 0.6, 2)], [(85, 10, 95, 20, 0.7), (85, 10, 95, 20, 0.6)]),
        # a fragment at the border: the second tile sees it whole, as a part of something larger
        ([(85, 10, 100, 13, 0.9)], [(85, 10, 120, 20, 0.7)], [(85, 10, 120, 20, 0.7)]),
        # the same not at the border: a small object on a large one
        ([(85, 10, 95, 13, 0.9)], [(85, 10, 120, 20, 0.7)], [(85, 10, 95, 13, 0.9), (85, 10, 120, 20, 0.7)]),
        # both see all of it, from border to border of the image, where nothing is cut
        ([(85, 0, 95, 50, 0.6)], [(85, 0, 94, 50, 0.7)], [(85, 0, 94, 50, 0.7)]),
        # another class covers it
        ([(85, 10, 100, 13, 0.9)], [(85, 10, 120, 20, 0.7, 1)], [(85, 10, 100, 13, 0.9), (85, 10, 120, 20, 0.7)]),
        # a fragment that nothing covers stays
        ([(85, 10, 100, 13, 0.9)], [], [(85, 10, 100, 13, 0.9)]),
        # two of the first tile agree with one of the second: the better one is joined
        (
            [(60, 10, 100, 20, 0.5), (70, 10, 100, 20, 0.9)],
            [(80, 10, 120, 20, 0.9)],
            [(70, 10, 120, 20, 0.9), (60, 10, 100, 20, 0.5)],
        ),
    ],
)
def test_two_tiles_by_hand(first, second, expected, with_masks):
    found = joined(first, second, with_masks)
    assert listed(found) == expected
    if with_masks:
        assert torch.equal(BitMasks(found.pred_masks.decode()).get_bounding_boxes().tensor, found.pred_boxes.tensor)


def test_two_fragments_that_cover_each_other_are_not_both_dropped():
    # Both lie in the strip, at the border of their tile; they share 12 of 16 columns, and 8 rows of 10 and 11.
    found = joined([(84, 10, 100, 20, 0.9)], [(80, 12, 96, 23, 0.8)])
    assert listed(found) == [(80, 12, 96, 23, 0.8)]


def test_arguments(tmp_path):
    plain = Painted()
    for tile, overlap, message in (
        (31, 0.2, "--tile is 31; a tile must have at least 32 pixels"),
        (0, 0.2, "--tile is 0; a tile must have at least 32 pixels"),
        (64, -0.1, "--overlap is -0.1; it must be a part of the tile from 0 to 0.75"),
        (64, 0.76, "--overlap is 0.76"),
        (64, float("nan"), "--overlap is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            TiledPredictor(plain, tile, overlap)
    plain.further_output = "a panoptic map"
    with pytest.raises(ConfigError, match="--tile cannot join a panoptic map, which this model predicts"):
        TiledPredictor(plain, 64)


def test_a_network_with_bgr_input(tmp_path):
    """Colours and value ranges are those of the whole image."""
    path = save_checkpoint(tmp_path / "spots.pth", spots_config("BGR"), CLASS_NAMES)
    predictor = Predictor.from_checkpoint(path)
    image = np.zeros((150, 200, 3), np.uint16)
    image[20:100, 30:180, 2] = 4000  # red
    image[120:140, 60:70, 0] = 2000
    expected, found = predictor(image), TiledPredictor(predictor, 64)(image)
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores)


def test_memory_of_many_objects_in_a_large_image():
    """Full masks would take 1.5 GB."""
    size, tiles = (2500, 2500), tile_boxes((2500, 2500), 640, 0.2)
    corners = np.random.default_rng(0).integers(0, 2440, (250, 2))
    found = []
    for x1, y1, x2, y2 in tiles:
        low, high = corners.clip((x1, y1), (x2, y2)), (corners + 60).clip((x1, y1), (x2, y2))
        seen = np.flatnonzero((low < high).all(1))
        low, high = low[seen] - (x1, y1), high[seen] - (x1, y1)
        boxes = Boxes(torch.from_numpy(np.concatenate([low, high], 1)).float())
        patches = [(a[1], a[0], np.ones(b[::-1] - a[::-1], bool)) for a, b in zip(low, high)]
        fields = {"scores": torch.rand(len(seen)), "pred_classes": torch.from_numpy(seen)}
        masks = RunLengthMasks.of_patches(patches, (640, 640))
        found.append(Instances((640, 640), pred_boxes=boxes, pred_masks=masks, **fields))
    tracemalloc.start()
    objects = merge_tiles(found, tiles, size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, found)) > 350
    assert len(objects) == 250
    expected = torch.from_numpy(np.concatenate([corners, corners + 60], 1)[objects.pred_classes]).float()
    assert torch.equal(objects.pred_boxes.tensor, expected)
    assert {tuple(code["size"]) for code in objects.pred_masks.codes} == {size}
    assert peak < 8 << 20


def test_pieces_that_score_less_than_the_threshold_are_joined():
    """An object of 120 columns scores 200 / 255 where its left end is seen, else 80 / 255."""
    image = np.zeros((40, 230, 3), np.uint8)
    image[5:35, 60:180, 0] = 1
    image[5:35, 60:100, 2], image[5:35, 100:180, 2] = 200, 80
    tiled = TiledPredictor(Painted(), 128, 0.2)  # from 0 and 102
    score = (68 * 200 + 78 * 80) / 146 / 255  # weighted by area
    for threshold, count in ((0.5, 1), (score + 0.01, 0)):
        (found,) = tiled.predict([tiled.preprocess(image, "RGB")], threshold)
        assert len(found) == count
        if count:
            assert found.pred_boxes.tensor.tolist() == [[60, 5, 180, 35]]
            assert found.scores.item() == pytest.approx(score)
            assert (found.pred_masks[0].numpy() == (image[..., 0] == 1)).all()
