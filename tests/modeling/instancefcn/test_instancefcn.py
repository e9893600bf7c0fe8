"""InstanceFCN as a whole: training, multi-scale inference against the dense way, pasting, Detectron2's ROI heads."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import nms

from instseg_d2.errors import ConfigError
from instseg_d2.modeling.instancefcn.inference import ProposalLimits, best_segments, paste, windows_to_segments
from projects.benchmarks.plain.instancefcn import assemble_densely, plain_infer
from tests.tiny import random_batch, tiny_model

CLASSIFIED = [
    "MODEL.INSTANCE_FCN.CLASSIFY", True,
    "MODEL.INSTANCE_FCN.CLASSIFIER_SCALE", 64,
    "MODEL.ROI_HEADS.NAME", "SegmentROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES", ["res3"],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3,
]  # fmt: skip
SMALL_WINDOWS = ["MODEL.INSTANCE_FCN.MASK_SIZE", 7, "MODEL.INSTANCE_FCN.GRID", 3]
FIELDS = {"pred_boxes", "scores", "pred_classes", "pred_masks"}
LOSSES = {"loss_window_objectness", "loss_window_mask"}


def confident(model):
    """In evaluation mode, with logits of a few units that differ from place to place."""
    generator = torch.Generator().manual_seed(5)
    head = model.proposal_generator.head
    with torch.no_grad():
        for layer in head.children():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.1)
        noise = torch.randn(1, head.instance_conv.in_channels, 12, 16, generator=generator).relu()
        for layer, outputs in zip((head.score_maps, head.objectness), head(noise)):
            layer.weight *= 2 / outputs.std()
            layer.bias.fill_(-2 * float(outputs.mean() / outputs.std()))
    return model.eval()


def train_losses(model, batch):
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    return losses


@pytest.mark.parametrize("grid", [3, 5, 7])
@pytest.mark.parametrize("mask_size", [21, 15])
def test_grids_and_mask_sizes(grid, mask_size):
    model = tiny_model("InstanceFCN", "MODEL.INSTANCE_FCN.GRID", grid, "MODEL.INSTANCE_FCN.MASK_SIZE", mask_size)
    assert set(train_losses(model, random_batch([3, 1]))) == LOSSES
    images = model.preprocess(random_batch([1], 64, 96))
    score_maps, objectness = model.proposal_generator.outputs(model.backbone(images.tensor))
    assert score_maps.shape == (1, grid**2, 8, 12)
    assert objectness.shape == (1, 8, 12)
    confident(model)
    model.proposal_generator.limits = ProposalLimits(top_windows=10**6)
    found, (expected,) = model.infer(images)[0]["instances"], plain_infer(model, images)
    assert len(found) == len(expected) > 5
    assert found.pred_masks.shape[1:] == (mask_size, mask_size)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks)


@pytest.mark.parametrize("counts", [[3, 0, 2], [0], [0, 0]])
@pytest.mark.parametrize("opts", [[], CLASSIFIED], ids=["proposals", "classified"])
def test_images_without_objects(counts, opts):
    losses = train_losses(tiny_model("InstanceFCN", *opts), random_batch(counts))
    assert set(losses) == LOSSES | ({"loss_cls", "loss_box_reg"} if opts else set())
    if not any(counts):
        assert losses["loss_window_mask"] == 0


def test_losses_see_the_objects():
    """A batch with a canonical object: its windows count, whatever its class, and images may differ in size."""
    model = tiny_model("InstanceFCN", "MODEL.INSTANCE_FCN.CANONICAL_SIZE", 60.0)
    small, large = random_batch([1], 64, 80)[0], random_batch([1], 96, 128, seed=1)[0]
    for sample, size in ((small, 60), (large, 60)):
        sample["instances"].gt_boxes = Boxes(torch.tensor([[4.0, 4, 4 + size, 4 + size * 0.9]]))
        sample["instances"].gt_masks.tensor[:] = False
        sample["instances"].gt_masks.tensor[0, 4:58, 4:64] = True
    torch.manual_seed(1)
    losses = model([small, large])
    assert losses["loss_window_mask"] > 0.5  # log 2 at the start
    for sample in (small, large):
        sample["instances"].gt_classes += 2
    torch.manual_seed(1)
    assert torch.equal(model([small, large])["loss_window_mask"], losses["loss_window_mask"])


def test_both_losses_fall():
    model = tiny_model(
        "InstanceFCN", "MODEL.INSTANCE_FCN.CANONICAL_SIZE", 60.0, "MODEL.INSTANCE_FCN.POSITIVE_OCTAVES", 1.0
    )
    batch = random_batch([2, 2])
    optimizer = torch.optim.AdamW(model.parameters(), 0.003)
    history = []
    for _ in range(25):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(losses)
    for name in LOSSES:
        assert history[-1][name] < 0.6 * history[0][name]


def test_autocast():
    model = tiny_model("InstanceFCN")
    model.proposal_generator.head.score_maps.weight.data *= 1e4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = train_losses(model, random_batch([3, 2]))
        found = confident(model)(random_batch([1]))[0]["instances"]
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert found.scores.dtype == torch.float32
    assert len(found)


def sized_batch():
    batch = random_batch([0], 70, 100) + random_batch([0], 96, 64, seed=2)
    batch[0].update(height=140, width=90)
    return batch


@pytest.mark.parametrize("score", ["objectness", "product"])
def test_inference_equals_the_dense_way(score):
    model = confident(
        tiny_model(
            "InstanceFCN",
            *SMALL_WINDOWS,
            "MODEL.INSTANCE_FCN.SCORE", score,
            "MODEL.INSTANCE_FCN.TOP_WINDOWS", 10**6,
            "INPUT.MAX_SIZE_TEST", 130,
        )
    )  # fmt: skip
    images = model.preprocess(sized_batch())
    for result, expected in zip(model.infer(images), plain_infer(model, images)):
        found = result["instances"]
        assert len(found) == len(expected) > 10
        assert found.image_size == expected.image_size
        for name in ("scores", "objectness_logits", "pred_masks", "pred_classes"):
            torch.testing.assert_close(found.get(name), expected.get(name))
        for name in ("pred_boxes", "windows"):
            torch.testing.assert_close(found.get(name).tensor, expected.get(name).tensor.float(), rtol=0, atol=1e-3)
        assert (found.scores[:-1] >= found.scores[1:]).all()
        boxes = found.pred_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= found.image_size[1] + 1e-3).all()
    # One image alone gives what it gives in a batch of its size.
    alone = model.infer(model.preprocess([sized_batch()[1]]))[0]["instances"]
    assert len(alone) > 10


def test_the_best_windows_are_enough():
    """With a short list of windows at each scale the best segments are the same."""
    model = confident(tiny_model("InstanceFCN", *SMALL_WINDOWS))
    images = model.preprocess(random_batch([0], 96, 128))
    (expected,) = plain_infer(model, images)
    model.proposal_generator.limits = ProposalLimits(top_windows=40, max_proposals=8)
    found = model.infer(images)[0]["instances"]
    assert len(found) == 8
    torch.testing.assert_close(found.scores, expected.scores[:8])
    torch.testing.assert_close(found.pred_masks, expected.pred_masks[:8])


def test_dense_assembling_by_hand():
    """2 x 2 maps of constants, windows of 3: cell 0 and 1 of a window read the first part, cell 2 the second."""
    maps = torch.arange(4.0)[:, None, None].expand(4, 4, 5)
    masks = assemble_densely(maps, 3, 2)
    assert masks[1 * 5 + 2].tolist() == [[0, 0, 1], [0, 0, 1], [2, 2, 3]]
    assert masks[0].tolist() == [[-10, -10, -10], [-10, 0, 1], [-10, 2, 3]]


def test_segments_by_hand():
    """One window with a 2 x 3 block, one whose block lies outside the image, an empty one."""
    logits = torch.full((3, 5, 5), -2.0)
    logits[0, 1:3, 0:3] = 1.0
    logits[1, 0, 4] = 1.0
    objectness = torch.tensor([0.5, 0.6, 0.7])
    corners = torch.tensor([2, 0, 0]), torch.tensor([1, 4, 0])
    for score in ("objectness", "product"):
        found = windows_to_segments(logits, objectness, corners, 8, (44, 60), score)
        assert found.pred_boxes.tensor.tolist() == [[8, 24, 32, 40]]
        assert found.windows.tensor.tolist() == [[8, 16, 48, 56]]
        factor = torch.tensor(1.0).sigmoid() if score == "product" else 1.0
        torch.testing.assert_close(found.scores, objectness[:1].sigmoid() * factor)


def test_suppression_and_count():
    segments = Instances((50, 50))
    segments.pred_boxes = Boxes(
        torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 7], [20, 20, 30, 30], [40, 40, 45, 45]])
    )
    segments.scores = torch.tensor([0.3, 0.9, 0.5, 0.6, 0.1])
    assert best_segments(segments, ProposalLimits(nms_threshold=0.8)).scores.tolist() == pytest.approx(
        [0.9, 0.6, 0.5, 0.1]
    )
    kept = best_segments(segments, ProposalLimits(nms_threshold=0.95, max_proposals=3))
    assert kept.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])


@pytest.mark.parametrize("side", [10.0, 400.0])
def test_suppression_of_many(side):
    """The first few segments alone, or all, as it needs: the same as all of them at once."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * 50
    segments = Instances((500, 500))
    segments.pred_boxes = Boxes(torch.cat([corner, corner + side], 1))
    segments.scores = torch.rand(300, generator=generator)
    found = best_segments(segments, ProposalLimits(nms_threshold=0.8, max_proposals=12))
    keep = nms(segments.pred_boxes.tensor, segments.scores, 0.8)
    assert torch.equal(found.scores, segments.scores[keep[:12]])
    assert (len(keep) < 12) == (side > 100)


def test_pasting():
    """Each pixel is the bilinear value of the window's cells at its centre; beyond the window there is nothing."""
    generator = torch.Generator().manual_seed(0)
    segments = Instances((40, 60))
    segments.windows = Boxes(torch.tensor([[-6.0, 3, 36, 45], [20, -10, 62, 32]]))
    segments.pred_boxes = segments.windows
    segments.pred_masks = torch.rand(2, 7, 7, generator=generator)
    segments.scores = torch.tensor([0.5, 0.4])
    segments.pred_classes = torch.tensor([0, 0])
    found = paste(segments, (80, 60))  # twice as high, equally wide
    for window, mask, full, box in zip(
        segments.windows.tensor, segments.pred_masks, found.pred_masks, found.pred_boxes.tensor
    ):
        x1, y1, x2, y2 = (window * torch.tensor([1.0, 2, 1, 2])).tolist()
        padded = F.pad(mask, (1, 1, 1, 1))
        for py in range(0, 80, 3):
            for px in range(60):
                u, v = ((px + 0.5 - x1) / (x2 - x1) * 7 + 0.5, (py + 0.5 - y1) / (y2 - y1) * 7 + 0.5)
                value = 0.0
                for row in range(9):
                    for column in range(9):
                        value += float(padded[row, column]) * max(0, 1 - abs(u - column)) * max(0, 1 - abs(v - row))
                assert bool(full[py, px]) == (value >= 0.5) or abs(value - 0.5) < 1e-5
        ys, xs = full.nonzero(as_tuple=True)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_output():
    model = confident(tiny_model("InstanceFCN", "MODEL.INSTANCE_FCN.MAX_PROPOSALS", 20))
    batch = sized_batch()
    for sample, output in zip(batch, model(batch)):
        found, size = output["instances"], (sample["height"], sample["width"])
        assert set(found.get_fields()) == FIELDS
        assert found.image_size == size
        assert 0 < len(found) <= 20
        assert (found.pred_classes == 0).all()
        assert found.pred_masks.shape == (len(found), *size)
        assert found.pred_masks.flatten(1).any(1).all()
        assert len(instances_to_coco_json(found, 1)) == len(found)
        assert set(output["proposals"].get_fields()) == {"proposal_boxes", "objectness_logits"}
        assert output["proposals"].image_size == size


@pytest.mark.parametrize("opts", [[], CLASSIFIED], ids=["proposals", "classified"])
def test_nothing_found_has_all_fields(opts):
    found = confident(tiny_model("InstanceFCN", *opts))(random_batch([1]))[0]["instances"]
    model = tiny_model("InstanceFCN", *opts).eval()
    model.proposal_generator.head.score_maps.bias.data.fill_(-50.0)
    nothing = model(random_batch([1]))[0]["instances"]
    assert len(found)
    assert len(nothing) == 0
    assert nothing.pred_masks.shape == (0, 96, 128)
    for name in FIELDS - {"pred_boxes"}:
        assert nothing.get(name).dtype == found.get(name).dtype
    assert nothing.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7, 80])
def test_class_counts(num_classes):
    model = tiny_model("InstanceFCN", *CLASSIFIED, num_classes=num_classes)
    train_losses(model, random_batch([2], num_classes=num_classes))
    found = confident(model)(random_batch([1]))[0]["instances"]
    assert set(found.get_fields()) == FIELDS
    assert len(found)
    assert found.pred_classes.max() < num_classes


def test_classified_segments_keep_their_masks():
    model = confident(tiny_model("InstanceFCN", *CLASSIFIED))
    images = model.preprocess(random_batch([0], 70, 100))
    roi_heads, model.roi_heads = model.roi_heads, None
    proposals = model.infer(images)[0]["instances"]
    model.roi_heads = roi_heads
    found = model.infer(images)[0]["instances"]
    assert len(found) > 5
    difference = (found.windows.tensor[:, None] - proposals.windows.tensor).abs().amax(2)
    difference += (found.pred_masks[:, None] - proposals.pred_masks).abs().amax((2, 3))
    nearest = difference.argmin(1)
    assert difference.amin(1).max() < 1e-3
    torch.testing.assert_close(
        found.pred_boxes.tensor, proposals.pred_boxes.tensor[nearest], rtol=0, atol=1e-3
    )  # regression moves nothing
    assert not torch.allclose(found.scores, proposals.scores[nearest])
    assert len(found.pred_classes.unique()) > 1
    with torch.no_grad():  # the class probability of the first one, by Detectron2's own parts
        resized = model.at_scale(images, 64)
        box = found.pred_boxes[:1].clone()
        box.scale(resized.image_sizes[0][1] / 100, resized.image_sizes[0][0] / 70)
        pooled = roi_heads.box_pooler([model.backbone(resized.tensor)["res3"]], [box])
        logits = roi_heads.box_predictor(roi_heads.box_head(pooled))[0]
    torch.testing.assert_close(found.scores[0], logits.softmax(1)[0, found.pred_classes[0]], rtol=1e-4, atol=1e-5)


def test_generalized_rcnn_takes_the_proposals():
    """Detectron2's own meta-architecture and ROI heads, boxes and masks, on InstanceFCN's proposals."""
    model = tiny_model(
        "InstanceFCN",
        *CLASSIFIED,
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.MASK_ON", True,
        "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
        "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    )  # fmt: skip
    losses = train_losses(model, random_batch([3, 2]))
    assert set(losses) == LOSSES | {"loss_cls", "loss_box_reg", "loss_mask"}
    found = confident(model)(random_batch([1]))[0]["instances"]
    assert set(found.get_fields()) == FIELDS
    assert len(found)


def test_explain():
    model = confident(tiny_model("InstanceFCN"))
    panels = model.explain(random_batch([0, 0], 70, 100), max_instances=3)
    assert len(panels) == 2
    titles = [title for title, _ in panels[0]]
    assert titles[0] == "objectness x mask probability"
    assert any("5 x 5 score maps" in title for title in titles)
    assert sum("assembled" in title for title in titles) == 3
    assert panels[0][0][1].shape == (70, 100, 3)
    for _, picture in panels[0]:
        assert picture.dtype == torch.empty(0, dtype=torch.uint8).numpy().dtype
        assert picture.ndim == 3
    model.proposal_generator.head.score_maps.bias.data.fill_(-50.0)
    model.proposal_generator.head.score_maps.weight.data.zero_()
    assert len(model.explain(random_batch([0]), max_instances=3)[0]) == 1


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (["MODEL.INSTANCE_FCN.SCORE", "both"], "SCORE is 'both'"),
        (["MODEL.INSTANCE_FCN.GRID", 22], "GRID is 22"),
        (["MODEL.INSTANCE_FCN.CELL_TARGET", "mean"], "CELL_TARGET is 'mean'"),
        (["MODEL.INSTANCE_FCN.IN_FEATURE", "conv5"], "IN_FEATURE is conv5"),
        (["MODEL.INSTANCE_FCN.SCALES_TEST", ()], "SCALES_TEST"),
        ([*CLASSIFIED, "MODEL.INSTANCE_FCN.CLASSIFIER_SCALE", 600], "CLASSIFIER_SCALE is 600"),
    ],
)
def test_values_that_cannot_be(opts, match):
    with pytest.raises(ConfigError, match=match):
        tiny_model("InstanceFCN", *opts)
