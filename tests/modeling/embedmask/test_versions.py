"""EmbedMask's three versions on a few cells: embeddings, margins, losses and masks computed by hand or one by one."""

import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from instseg_d2.layers import LocationGrid
from instseg_d2.modeling.embedmask import ProposalHead
from instseg_d2.modeling.embedmask.targets import GroundTruth
from instseg_d2.modeling.embedmask.versions import VERSIONS, Version
from instseg_d2.modeling.losses import ltrb_ious
from instseg_d2.modeling.proposal_generator import fcos as fcos_module
from instseg_d2.modeling.proposal_generator.fcos_head import HeadOutputs
from instseg_d2.modeling.proposal_generator.fcos_targets import Assignment
from tests.tiny import tiny_model

every_version = pytest.mark.parametrize("version", ["v1", "v2", "v3"])


def test_the_table_of_versions():
    assert VERSIONS == {
        "v1": Version(spatial=False, margin="box", averaged=True, min_probability=0.0, log_masks=False),
        "v2": Version(spatial=True, margin="scalar", averaged=False, min_probability=1e-9, log_masks=False),
        "v3": Version(spatial=True, margin="dimension", averaged=False, min_probability=1e-9, log_masks=True),
    }


def centred(layer, values):
    """The layer's 3x3 kernels read the one channel of the middle cell alone, times ``values``."""
    layer.weight.data.zero_()
    layer.weight.data[:, 0, 1, 1] = torch.tensor(values)


# Margins at a location of stride 8 whose tower is 64, and at one of stride 16 whose tower is 32: the tower / 32 is 2
# and 1, the boxes' distances / 800 are (1, 2, 3, 4) / 100 and 4 times 0.04.
MARGINS = {
    "v1": [[math.exp(0.25 + 0.3)], [math.exp(0.25 + 0.4)]],
    "v2": [[math.exp(0.25 + 0.5 * 2)], [math.exp(0.25 + 0.5 * 1)]],
    # Scales of the levels: 2 and 3, for the first two dimensions alone.
    "v3": [[math.exp(2 * 1.25)] * 2 + [math.exp(1.25)], [math.exp(3 * 0.75)] * 2 + [math.exp(0.75)]],
}


@every_version
def test_embeddings_and_margins(version):
    kind = VERSIONS[version]
    head = ProposalHead(channels=1, embed_dim=3, num_levels=2, margin=kind.margin, divisor=2.0)
    centred(head.embedding, [1.0, 2.0, 3.0])
    head.embedding.bias.data.fill_(0.5)
    if head.box_margin is not None:
        head.box_margin.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        head.box_margin.bias.data.fill_(0.25)
    else:
        centred(head.margin, [0.5] * len(head.margin.bias))
        head.margin.bias.data.fill_(0.25)
    if head.margin_scales is not None:
        head.margin_scales[0].data.fill_(2.0)
        head.margin_scales[1].data.fill_(3.0)
    grid = LocationGrid(1, [(1, 2), (1, 1)], [8, 16], torch.device("cpu"))
    ltrb = torch.tensor([[9.0] * 4, [1.0, 2.0, 3.0, 4.0], [2.0] * 4])
    tower = [torch.tensor([[[[7.0, 64.0]]]]), torch.tensor([[[[32.0]]]])]
    outputs = HeadOutputs(grid, torch.zeros(3, 1), ltrb, torch.zeros(3), tower)
    scale = torch.tensor([2.0]) if kind.spatial else None
    embeddings, margins = head(outputs, torch.tensor([1, 2]), scale, (40, 80))
    torch.testing.assert_close(margins, torch.tensor(MARGINS[version]))
    # The locations are (12, 4) and (8, 8).
    position = torch.tensor([[0.24, 0.08, 0.0], [0.16, 0.16, 0.0]]) * kind.spatial
    torch.testing.assert_close(embeddings, torch.tensor([[32.5, 64.5, 96.5], [16.5, 32.5, 48.5]]) + position)
    if version == "v1":
        head.box_scale = -1.0  # the shorter side of the canvas
        _, margins = head(outputs, torch.tensor([1]), scale, (40, 80))
        torch.testing.assert_close(margins, torch.tensor([[math.exp(0.25 + 6)]]))


@every_version
def test_which_locations_make_the_proposal(version):
    """Three predicted boxes as wide as the true one and 9.6, 12.8 and 6.4 of its 16 pixels high."""
    grid = LocationGrid(1, [(1, 3)], [8], torch.device("cpu"))
    heights = torch.tensor([9.6, 12.8, 6.4])
    x = torch.tensor([4.0, 12.0, 20.0])
    ltrb = torch.stack([x, torch.full((3,), 4.0), 24 - x, heights - 4], 1) / 8
    outputs = HeadOutputs(grid, torch.zeros(3, 1), ltrb, torch.zeros(3), [])
    instances = Instances((16, 24), gt_boxes=Boxes([[0, 0, 24, 16]]), gt_masks=BitMasks(torch.ones(1, 16, 24)))
    positives = Assignment(torch.arange(3), torch.zeros(3, dtype=torch.int64), ltrb, torch.ones(3))
    criterion = tiny_model("EmbedMask", "MODEL.EMBED_MASK.VERSION", version).criterion
    chosen = criterion.choose(outputs, positives, GroundTruth([instances], (16, 24)))
    assert chosen.tolist() == ([0, 1] if version == "v1" else [1])


def cell(log_p, version):
    """An embedding whose log-probability is that, for a proposal at 0 with margins 1 (v1, v2) or 1 and 0.25 (v3)."""
    length = math.sqrt(-log_p)
    return [0.6 * length, (1.6 if version == "v3" else 0.8) * length]


@every_version
@pytest.mark.parametrize("fixed", [False, True])
def test_mask_and_smooth_loss(version, fixed):
    """
    Six cells, the object on cells 2 and 3 of its box. Cell 2 has p = 0.5, cell 3 p = exp(-30), cell 0 outside the box
    p = 0.8; the others are right by more than the hinge's margin. A second object has no positive location, a second
    image no object.
    """
    model = tiny_model("EmbedMask", "MODEL.EMBED_MASK.VERSION", version)
    log_p = [math.log(0.8), -5.0, math.log(0.5), -30.0, -5.0, -5.0]
    row = torch.tensor([cell(value, version) for value in log_p])
    pixels = torch.zeros(2, 2, 1, 6)
    pixels[0, :, 0] = row.T
    masks = torch.zeros(2, 4, 24)
    masks[0, :, 8:16] = 1
    boxes = Boxes([[8, 0, 16, 4], [16, 0, 24, 4]])
    instances = [Instances((4, 24), gt_boxes=boxes, gt_masks=BitMasks(masks))]
    instances.append(Instances((4, 24), gt_boxes=Boxes(torch.zeros(0, 4)), gt_masks=BitMasks(torch.zeros(0, 4, 24))))
    embeddings = torch.tensor([[0.1, 0.0], [-0.1, 0.0]])
    margins = torch.tensor([[0.9], [1.1]])
    if version != "v1":
        embeddings, margins = torch.zeros(1, 2), torch.tensor([[1.0, 0.25] if version == "v3" else [1.0]])
    if fixed and version == "v3":
        pixels[0, 1] /= 2  # the margin of the second dimension is 1, too
    objects = torch.zeros(len(embeddings), dtype=torch.int64)
    truth = GroundTruth(instances, (4, 24))
    # A fixed margin replaces the others for the masks, not for the smooth loss.
    factor, fixed_margin = (3.0, 1.0) if fixed else (1.0, None)
    losses = model.criterion(pixels, embeddings, margins * factor, objects, truth, fixed_margin)

    # Hinge errors 1 - logit * sign: cell 2 has 1, cell 3 31 or, with p raised to 1e-9, 1 + log(1e9).
    missed = 31.0 if version == "v1" else 1 + math.log(1e9)
    lovasz = missed / 2 + 1 / 2  # cells 1 to 5 alone: 1 - IoU goes 1/2, 1
    if version == "v3":  # the whole map: cell 0, error 1 + log(4), is sorted between them; 1 - IoU goes 1/2, 2/3, 1
        lovasz = missed / 2 + (1 + math.log(4)) / 6 + 1 / 3
    objects_counted = 2 if version == "v1" else 1
    torch.testing.assert_close(losses["mask_loss"], torch.tensor(0.5 * lovasz / objects_counted / 2))
    assert ("smooth_loss" in losses) == (version == "v1")
    if version == "v1":
        squares = 2 * 0.1**2 + 2 * (0.1 * factor) ** 2
        torch.testing.assert_close(losses["smooth_loss"], torch.tensor(0.1 * squares / 2 / 2))


def masks_of(model, monkeypatch, row, box):
    """The columns where the mask of one detection is True: its box, and the pixels' embeddings (cells, 2) in a row."""
    width = 4 * len(row)
    found = Instances((4, width), pred_boxes=Boxes([box]), scores=torch.ones(1))
    found.pred_classes = found.rows = torch.zeros(1, dtype=torch.int64)
    margins = torch.tensor([[1.0, 0.25]]) if model.log_masks else torch.ones(1, 1)
    monkeypatch.setattr(model, "_outputs", lambda images: (None, row.T[None, :, None]))
    monkeypatch.setattr(model, "_proposals", lambda *arguments: (torch.zeros(1, 2), margins))
    monkeypatch.setattr(model.proposal_generator, "detect", lambda *arguments: [found])
    (output,) = model.detect([{"image": torch.zeros(3, 4, width)}])
    (mask,) = output["instances"].pred_masks
    assert mask.shape == (4, width)
    assert (mask == mask[0]).all()
    return mask[0].nonzero()[:, 0].tolist()


# Two cells of probability 0.82 and 0.02. The columns' weights of the second are 0, 0, 1/8, 3/8, 5/8, 7/8, 1, 1: their
# probabilities 0.82, 0.82, 0.72, 0.52, 0.32, ... against 0.5 or 0.53; their log-probabilities -0.198, -0.198, -0.663,
# ... against log 0.53 = -0.635.
@pytest.mark.parametrize(("version", "columns"), [("v1", [0, 1, 2, 3]), ("v2", [0, 1, 2]), ("v3", [0, 1])])
def test_thresholds_of_masks(version, columns, monkeypatch):
    model = tiny_model("EmbedMask", "MODEL.EMBED_MASK.VERSION", version).eval()
    row = torch.tensor([cell(math.log(p), version) for p in (0.82, 0.02)])
    assert masks_of(model, monkeypatch, row, [0.0, 0.0, 8.0, 4.0]) == columns


# All cells are sure. A box from 22 to 33.8 is one from 5.5 to 8.45 cells: v1 and v2 take 4.5 <= c < 9.45, cells 5 to 9,
# whose edges lie halfway to the zeros around them; v3 takes 5 - 2 <= c < 8 + 2, cells 3 to 9, and the -10 around them
# pulls every column between them below log 0.53.
@pytest.mark.parametrize(("version", "first", "last"), [("v1", 20, 39), ("v2", 20, 39), ("v3", 14, 37)])
def test_regions_of_masks(version, first, last, monkeypatch):
    model = tiny_model("EmbedMask", "MODEL.EMBED_MASK.VERSION", version).eval()
    columns = masks_of(model, monkeypatch, torch.zeros(12, 2), [22.0, 0.0, 33.8, 4.0])
    assert columns == list(range(first, last + 1))


def box_loss(pred, target, kind):
    """One location's box loss in Python floats: areas of boxes around the location, 1e-7 more for the hull."""
    areas = []
    for l, t, r, b in (pred, target, map(min, pred, target), map(max, pred, target)):
        areas.append((l + r) * (t + b))
    union, hull = areas[0] + areas[1] - areas[2], areas[3] + 1e-7
    iou = (areas[2] + 1) / (union + 1)
    return {"iou": -math.log(iou), "linear_iou": 1 - iou, "giou": 1 - (iou - (hull - union) / hull)}[kind]


def head_outputs(scale):
    """Six locations of random outputs, distances up to ``scale`` strides; two objects; three positive locations."""
    generator = torch.Generator().manual_seed(0)
    logits, quality = torch.randn(6, 3, generator=generator), torch.randn(6, generator=generator)
    ltrb = torch.rand(6, 4, generator=generator) * scale
    grid = LocationGrid(1, [(2, 3)], [8], torch.device("cpu"))
    outputs = HeadOutputs(grid, logits.requires_grad_(), ltrb.requires_grad_(), quality.requires_grad_(), [])
    targets = torch.rand(3, 4, generator=generator) * scale
    positives = Assignment(torch.tensor([0, 2, 3]), torch.tensor([1, 0, 1]), targets, torch.tensor([0.9, 0.2, 0.5]))
    return outputs, positives, [Instances((16, 24), gt_classes=torch.tensor([2, 0]))]


def transcribed(outputs, positives, kind, others=(0, 0.0)):
    """
    The sheet's sums with loops: class, box and centerness loss.

    Args:
        others: positives and summed centerness of a second worker; (0, 0.0): there is none.
    """
    labels = dict(zip(positives.rows.tolist(), ([2, 0][k] for k in positives.objects.tolist())))
    workers = 1 if others == (0, 0.0) else 2
    divisor = max(1, (len(labels) + others[0]) / workers)
    weights = positives.centerness.tolist()
    classes = boxes = centers = 0.0
    for row, logits in enumerate(outputs.class_logits.tolist()):
        for label, logit in enumerate(logits):
            p = 1 / (1 + math.exp(-logit))
            if labels.get(row) == label:
                classes -= 0.25 * (1 - p) ** 2 * math.log(p)
            else:
                classes -= 0.75 * p**2 * math.log(1 - p)
    for row, target, weight in zip(positives.rows.tolist(), positives.ltrb.tolist(), weights):
        boxes += weight * box_loss(outputs.ltrb[row].tolist(), target, kind)
        p = 1 / (1 + math.exp(-outputs.quality_logits[row].item()))
        centers -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
    total = (sum(weights) + others[1]) / workers
    return torch.tensor([classes / divisor, boxes / total if weights else 0.0, centers / divisor])


# Objects far smaller than a stride are where the hull's 1e-7 weighs.
@pytest.mark.parametrize("scale", [3.0, 1e-4])
@pytest.mark.parametrize("kind", ["giou", "iou", "linear_iou"])
def test_detection_losses(kind, scale):
    fcos = tiny_model("EmbedMask", "MODEL.EMBED_MASK.IOU_LOSS_TYPE", kind).proposal_generator
    outputs, positives, instances = head_outputs(scale)
    losses = torch.stack(list(fcos.losses(outputs, positives, instances)[0].values()))
    torch.testing.assert_close(losses, transcribed(outputs, positives, kind), rtol=1e-5, atol=1e-6)


def test_centerness_normaliser_has_no_floor():
    outputs, positives, instances = head_outputs(3.0)
    positives.centerness *= 1e-9
    expected = transcribed(outputs, positives, "giou")
    (_, found, _) = tiny_model("EmbedMask").proposal_generator.losses(outputs, positives, instances)[0].values()
    torch.testing.assert_close(found, expected[1])
    # BlendMask's FCOS has one, and no addition to the hull.
    (_, found, _) = tiny_model("BlendMask").proposal_generator.losses(outputs, positives, instances)[0].values()
    torch.testing.assert_close(found, expected[1] * 1.6e-9 / 1e-6)
    nothing, target = torch.zeros(1, 4), torch.full((1, 4), 1e-4)
    torch.testing.assert_close(ltrb_ious(nothing, target)[1], torch.ones(1))  # a hull of 4e-8 is the union
    torch.testing.assert_close(ltrb_ious(nothing, target, 1e-7)[1], torch.tensor([1 - 1 / 1.4]))


@pytest.mark.parametrize("others", [(5, 2.5), (0, 0.0)])
@pytest.mark.parametrize("here", [0, 3])
def test_losses_are_divided_by_the_mean_over_workers(here, others, monkeypatch):
    def mean_over_workers(values):
        return values if others == (0, 0.0) else (values + torch.tensor(others)) / 2

    monkeypatch.setattr(fcos_module, "mean_over_workers", mean_over_workers)
    outputs, positives, instances = head_outputs(3.0)
    positives = Assignment(*(getattr(positives, name)[:here] for name in ("rows", "objects", "ltrb", "centerness")))
    losses = torch.stack(
        list(tiny_model("EmbedMask").proposal_generator.losses(outputs, positives, instances)[0].values())
    )
    torch.testing.assert_close(losses, transcribed(outputs, positives, "giou", others), rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    for leaf in (outputs.class_logits, outputs.ltrb, outputs.quality_logits):
        assert leaf.grad.isfinite().all()
