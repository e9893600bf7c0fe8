"""EmbedMask as a whole: inference and training against the oracle, hard batches, class counts, pictures."""

import copy

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from instseg_d2.errors import ConfigError
from instseg_d2.inference.optimize import optimize_for_inference
from projects.benchmarks.plain.embedmask import plain_infer, plain_losses, plain_postprocess
from tests.modeling.embedmask.oracle import EmbedMaskOracle
from tests.tiny import random_batch, tiny_model

FIELDS = {"pred_boxes", "scores", "pred_classes", "pred_masks"}
VERSIONS = ["v1", "v2", "v3", "v1 fixed", "v2 fixed", "v3 fixed"]
every_version = pytest.mark.parametrize("version", VERSIONS)


def embedmask(version="v3", num_classes=3, **keys):
    """The tiny model of a version, perhaps of fixed margin; ``keys`` of MODEL.EMBED_MASK go over it."""
    name, *fixed = version.split()
    values = {"VERSION": name, "FIX_MARGIN": bool(fixed), **keys}
    opts = [item for key, value in values.items() for item in (f"MODEL.EMBED_MASK.{key}", value)]
    return tiny_model("EmbedMask", *opts, num_classes=num_classes)


def spread(model):
    """The model with outputs that differ from place to place, so that it detects, and embeddings have an order."""
    generator = torch.Generator().manual_seed(5)
    head, proposals = model.proposal_generator.head, model.proposal_head
    near = 0.08 / proposals.embedding.out_channels**0.5  # probabilities of neighbours lie around one half
    for layer, scale in (
        (head.class_logits, 0.3),
        (head.box_distances, 0.05),
        (head.quality_logits, 0.2),
        (proposals.embedding, near),
        (model.pixel_head.embedding, near),
        (proposals.margin, 1.0),
        (proposals.box_margin, 1.0),
    ):
        if layer is not None:
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * scale
    head.class_logits.bias.data.fill_(-1.0)
    head.box_distances.bias.data.fill_(2.0)
    for scales in (head.scales, proposals.margin_scales or []):
        for scale in scales:
            scale.data = torch.rand(1, generator=generator) + 0.5
    if model.position_scale is not None:
        model.position_scale.data.fill_(1.7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def assert_same_detections(found, expected, mask_difference=0.0):
    for a, b in zip(found, expected):
        a, b = a["instances"], b["instances"]
        assert len(a) == len(b) >= 5
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-4, atol=0.01)
        assert torch.equal(a.pred_classes, b.pred_classes)
        assert a.pred_masks.dtype == torch.bool
        assert a.pred_masks.shape == b.pred_masks.shape
        assert (a.pred_masks != b.pred_masks).float().mean() <= mask_difference


def oracle_of(model, batch, version="v3", **keys):
    """The oracle for the model's weights and the maps of its backbone."""
    name, *fixed = version.split()
    images = model.preprocess(batch)
    maps = model.backbone(images.tensor)
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    keys = {"FIX_MARGIN": bool(fixed), **{k: v for k, v in keys.items() if k != "VERSION"}}
    features, canvas = [maps[f"p{level}"] for level in range(3, 8)], images.tensor.shape[-2:]
    return EmbedMaskOracle(name, keys, weights, features, canvas, images.image_sizes, model.training)


def oracle_detections(oracle, batch):
    """In the model's form."""
    outputs = []
    sizes = [(x["height"], x["width"]) for x in batch]
    for size, (boxes, scores, classes, masks) in zip(sizes, oracle.detections(sizes)):
        outputs.append({"instances": Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_masks=masks)})
        outputs[-1]["instances"].pred_classes = classes
    return outputs


def oracle_objects(batch, inclusive):
    """What the oracle takes of the ground truth; inclusive boxes end one pixel of the original image earlier."""
    objects = []
    for x in batch:
        instances, masks = x["instances"], x["instances"].gt_masks
        if isinstance(masks, PolygonMasks):
            masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
        height, width = instances.image_size
        last = torch.tensor([0.0, 0.0, width / x["width"], height / x["height"]]) * inclusive
        objects.append((instances.gt_boxes.tensor - last, instances.gt_classes, masks.tensor))
    return objects


def assert_same_losses(found, expected):
    assert set(found) == set(expected)
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("inclusive", [False, True])
@every_version
def test_inference_equals_the_oracle(version, inclusive):
    model = spread(embedmask(version, INCLUSIVE_BOXES=inclusive, PRE_NMS_TOP_N=50)).eval()
    batch = random_batch([1, 1], 100, 120) + random_batch([0], 64, 160)
    batch[0].update(height=77, width=211)
    oracle = oracle_of(model, batch, version, INCLUSIVE_BOXES=inclusive, PRE_NMS_TOP_N=50)
    expected = oracle_detections(oracle, batch)
    found = model(batch)
    assert all(0.01 < x["instances"].pred_masks.float().mean() < 0.9 for x in found)
    # A pixel whose float value lies within rounding of the threshold may differ.
    assert_same_detections(found, expected, mask_difference=1e-5)
    assert_same_detections(optimize_for_inference(model)(batch), expected, mask_difference=1e-3)


def test_boxes_are_clipped_before_nms_and_scores_have_no_root():
    model = spread(embedmask()).eval()
    result = model.infer(model.preprocess(random_batch([1], 90, 100)))[0]["instances"]
    boxes = result.pred_boxes.tensor
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 100
    assert boxes[:, 3].max() <= 90
    images = model.preprocess(random_batch([1], 90, 100))
    outputs = model.proposal_generator.outputs(model.backbone(images.tensor))
    products = outputs.class_logits.sigmoid() * outputs.quality_logits.sigmoid()[:, None]
    torch.testing.assert_close(result.scores[0], products[outputs.class_logits.sigmoid() > 0.05].max())


def test_inclusive_boxes_lose_a_pixel_of_the_original_image():
    (sample,) = random_batch([2], 96, 128)
    sample.update(height=48, width=32)
    given = sample["instances"].gt_boxes.tensor.clone()
    (found,) = embedmask(INCLUSIVE_BOXES=True).gt_instances([sample])
    torch.testing.assert_close(found.gt_boxes.tensor, given - torch.tensor([0.0, 0.0, 4.0, 2.0]))


def test_levels_that_nothing_reads_are_not_trained():
    model = embedmask(FPN_STRIDES=[8, 16, 32], FPN_INTEREST_SPLIT=[64, 128])
    with EventStorage():
        sum(model(random_batch([2])).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    frozen = {name.rsplit(".", 1)[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.top_block.p6", "backbone.top_block.p7"}


@pytest.mark.parametrize("key", ["PRIOR_MARGIN", "EMBED_REDUCE_FACTOR", "MARGIN_REDUCE_FACTOR"])
def test_divisors_are_above_zero(key):
    with pytest.raises(ConfigError, match=rf"MODEL\.EMBED_MASK\.{key} is 0.0; it must be above 0"):
        embedmask(**{key: 0})


def test_inclusive_boxes_end_one_output_pixel_later():
    model = spread(embedmask(INCLUSIVE_BOXES=True)).eval()
    sample = {**random_batch([1], 96, 128)[0], "height": 192, "width": 256}
    result = model.infer(model.preprocess([sample]))[0]["instances"]
    boxes = result.pred_boxes.tensor.clone()
    assert boxes[:, 2].max() <= 127
    assert boxes[:, 3].max() <= 95
    (output,) = model([sample])
    expected = (boxes * 2 + torch.tensor([0.0, 0.0, 1.0, 1.0]))[: len(output["instances"])]
    torch.testing.assert_close(output["instances"].pred_boxes.tensor, expected)


@pytest.mark.parametrize("inclusive", [False, True])
@every_version
def test_losses_and_gradients_equal_the_oracle(version, inclusive):
    model = spread(embedmask(version, INCLUSIVE_BOXES=inclusive))
    batch = random_batch([3, 0, 2], 96, 128)
    batch[0]["instances"].gt_masks.tensor[1] = False  # an object without positive locations
    batch[2]["instances"].gt_masks = PolygonMasks(
        [[[10.0, 8.0, 70.0, 12.0, 60.0, 80.0]], [[30.0, 20.0, 100.0, 20.0, 100.0, 90.0, 34.0, 70.0]]]
    )
    images = model.preprocess(batch)
    found = model.losses(images, batch)
    expected = oracle_of(model, batch, version, INCLUSIVE_BOXES=inclusive).losses(oracle_objects(batch, inclusive))
    names = {"loss_cls", "loss_reg", "loss_centerness", "mask_loss"}
    assert set(found) == names | ({"smooth_loss"} if "v1" in version else set())
    assert all(loss.detach() > 0 for loss in found.values())
    assert_same_losses(found, expected)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours, theirs = (
        torch.autograd.grad(sum(losses.values()), list(parameters.values()), retain_graph=True)
        for losses in (found, expected)
    )
    for name, a, b in zip(parameters, ours, theirs):
        assert (a - b).norm() <= 2e-3 * b.norm() + 1e-6, name


@every_version
@pytest.mark.parametrize("counts", [(0,), (0, 0), (0, 3), (5, 1, 0)])
def test_every_parameter_is_reached(version, counts):
    model = embedmask(version)
    losses = model(random_batch(counts))
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    if sum(counts) == 0:
        assert losses["mask_loss"] == 0
        assert losses["loss_reg"] == 0


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7, 80])
def test_class_counts(num_classes):
    model = embedmask(num_classes=num_classes)
    losses = model(random_batch([2, 1], num_classes=num_classes))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.proposal_generator.head.class_logits.out_channels == num_classes
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std() > 0, name
    (output,) = spread(model).eval()(random_batch([1]))
    assert output["instances"].pred_classes.max() < num_classes


def test_nothing_found_has_all_fields():
    (output,) = embedmask().eval()(random_batch([3]))
    assert len(output["instances"]) == 0
    assert set(output["instances"].get_fields()) == FIELDS
    assert output["instances"].pred_masks.shape == (0, 96, 128)
    assert output["instances"].pred_masks.dtype == torch.bool


def test_evaluation_ignores_annotations_and_needs_none():
    model = spread(embedmask()).eval()
    batch = random_batch([2])
    with_annotations = model(batch)[0]["instances"]
    without = model([{k: v for k, v in batch[0].items() if k != "instances"}])[0]["instances"]
    assert torch.equal(with_annotations.scores, without.scores)
    assert torch.equal(with_annotations.pred_masks, without.pred_masks)
    assert model([{"image": batch[0]["image"]}])[0]["instances"].image_size == (96, 128)


@pytest.mark.parametrize(
    "keys",
    [
        {"SAMPLE_IN_MASK": False},
        {"CENTER_ON": False},
        {"NORM": "BN"},
        {"NORM": "none"},
        {"USE_DCN_IN_TOWER": True},
        {"EMBED_REDUCE_FACTOR": 4, "MARGIN_REDUCE_FACTOR": 1},
        {"MASK_SCALE_FACTOR": 1},
        {"MASK_SCALE_FACTOR": 4},
        {"NMS_TH": 0.0, "IOU_LOSS_TYPE": "iou"},
        {"VERSION": "v1", "BOX_TO_MARGIN_SCALE": -1.0, "BOX_PADDING": -1.0},
        {"VERSION": "v3", "EMBED_DIM": 4, "BOX_PADDING": 0.0},
    ],
)
def test_variants_equal_the_oracle(keys):
    model = spread(embedmask(**keys))
    batch = random_batch([2, 0], 64, 96)
    images = model.preprocess(batch)
    losses = model.losses(images, batch)
    version = keys.get("VERSION", "v3")
    assert_same_losses(losses, oracle_of(model, batch, version, **keys).losses(oracle_objects(batch, False)))
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    if keys.get("NMS_TH") != 0 and keys.get("NORM") != "none":  # without a norm the best scores are all 1
        model.eval()
        expected = oracle_detections(oracle_of(model, batch, version, **keys), batch)
        assert_same_detections(model(batch), expected, mask_difference=1e-5)


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_the_twin_of_the_timings_computes_the_same(version):
    model = spread(embedmask(version))
    batch = random_batch([2, 0], 64, 96)
    images = model.preprocess(batch)
    assert_same_losses(model.losses(images, batch), plain_losses(model, images, model.gt_instances(batch)))
    results = plain_infer(model.eval(), model.preprocess(batch))
    expected = [{"instances": plain_postprocess(model, result, (64, 96))} for result in results]
    assert_same_detections(model(batch), expected, mask_difference=1e-5)


def test_autocast_losses_are_finite_float32():
    for version in ("v1", "v2", "v3"):
        model = embedmask(version)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(random_batch([2, 1]))
        assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        model = spread(model).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (output,) = model(random_batch([1]))
        assert len(output["instances"]) > 0


def test_a_confident_model_gives_sane_masks():
    """Far pixels have probability 0 in float32, the proposal's own pixel 1: nothing is lost or not a number."""
    for version in ("v1", "v2", "v3"):
        model = spread(embedmask(version))
        model.pixel_head.embedding.weight.data *= 1e3
        losses = model(random_batch([2, 1]))
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_optimising_leaves_the_model_as_it_was():
    model = spread(embedmask())
    before = copy.deepcopy(model.state_dict())
    optimize_for_inference(model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values()))


@pytest.mark.parametrize(("version", "bars"), [("v1", 1), ("v2", 1), ("v3", 16), ("v3 fixed", 1)])
def test_explain_makes_pictures(version, bars):
    model = spread(embedmask(version)).eval()
    for panels in model.explain(random_batch([1, 0], 90, 120), max_instances=2):
        titles = [title for title, _ in panels]
        assert titles[0] == "pixel embedding"
        assert len(titles) == 1 + 2 * 3
        assert ["distance", "half at this distance", "mask"] == [title.split(": ")[1] for title in titles[1:4]]
        for _, picture in panels:
            assert picture.dtype.name == "uint8"
            assert picture.ndim == 3
            assert picture.std() > 0
        assert panels[0][1].shape == (90, 120, 3)
        assert panels[2][1].shape[1] == 4 + 20 * bars


def test_initial_values():
    model = embedmask("v3")
    assert model.proposal_head.margin.bias.exp().allclose(torch.tensor(0.6931472 / 4))
    assert model.position_scale.tolist() == [1.0]
    assert [scale.tolist() for scale in model.proposal_head.margin_scales] == [[1.0]] * 5
    for layer in (model.proposal_head.embedding, model.proposal_head.margin, model.pixel_head.embedding):
        assert 0.009 < layer.weight.std() < 0.011
    assert embedmask("v1").proposal_head.box_margin.weight.shape == (1, 4)
    assert embedmask("v1").position_scale is None
    assert embedmask("v2").proposal_head.margin.weight.shape[0] == 1
