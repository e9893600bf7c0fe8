"""ISTR as a whole against its plain transcription: both versions, all embeddings, the ablations, hard batches."""

import pytest
import torch
from detectron2.structures import PolygonMasks
from detectron2.structures import masks as mask_module

from instseg_d2.errors import ConfigError
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.layers import packed_linear
from instseg_d2.modeling import ground_truth
from instseg_d2.modeling.istr import criterion, targets
from projects.benchmarks.plain.istr import plain_infer, plain_losses
from tests.tiny import random_batch, tiny_model

METHOD = "MODEL.ISTR.MASK_ENCODING_METHOD"
METHODS = ["", "PCA", "DCT", "AE"]
TERMS = ("loss_ce", "loss_bbox", "loss_giou", "loss_feat", "loss_dice")
FEW_HEADS = ("MODEL.ISTR.NUM_HEADS", 3)


def as_polygons(batch):
    """The same samples with rectangles as polygons for masks."""
    for sample in batch:
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        polygons = [[[x1, y1, x2, y1, x2, (y1 + y2) / 2, x1, y2]] for x1, y1, x2, y2 in boxes]
        sample["instances"].gt_masks = PolygonMasks(polygons)
    return batch


def missing_gradients(model):
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ("method", "opts"),
    [
        *((method, ()) for method in METHODS),
        ("", ("MODEL.ISTR.ROI_ATTENTION", "multihead")),
        ("", ("MODEL.ISTR.EMBEDDING", "RawMask")),
    ],
)
def test_losses_and_gradients(method, opts):
    model = tiny_model("ISTR", METHOD, method, *FEW_HEADS, *opts)
    batch = random_batch([3, 2], 70, 100)
    images = model.preprocess(batch)
    found = model.losses(images, batch)
    expected = plain_losses(model, images, [x["instances"] for x in batch])
    suffixes = ("_0", "_1", "_2" if method else "")
    assert set(found) == {term + suffix for term in TERMS for suffix in suffixes}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    grads = torch.autograd.grad(sum(found.values()), parameters)
    wanted = torch.autograd.grad(sum(expected.values()), parameters)
    for name, a, b in zip(names, grads, wanted):
        assert (a - b).norm() <= 2e-3 * b.norm() + 1e-4, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimised", [False, True])
def test_inference(method, optimised, monkeypatch):
    monkeypatch.setattr(packed_linear, "SMALLEST", 0)
    model = tiny_model("ISTR", METHOD, method, "TEST.DETECTIONS_PER_IMAGE", 25).eval()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    batch = random_batch([0], 70, 100) + random_batch([0], 96, 64, seed=1)
    images = model.preprocess(batch)
    expected = plain_infer(model, images)
    found = (optimize_for_inference(model) if optimised else model).infer(images)
    side = 112 if method else 28
    for a, b in zip((x["instances"] for x in found), expected):
        assert a.image_size == b.image_size
        assert a.pred_masks.shape == (25, 1, side, side)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-3, atol=1e-5)
        assert torch.equal(a.pred_classes, b.pred_classes)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(a.pred_masks, b.pred_masks, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["", "DCT"])
def test_best_of_one_flat_list(method):
    """Class and query of each detection, from the last head's logits or the mean of the last four heads'."""
    model = tiny_model("ISTR", METHOD, method, "TEST.DETECTIONS_PER_IMAGE", 7).eval()
    images = model.preprocess(random_batch([0]))
    with torch.no_grad():
        predictions = model.roi_heads(*model.initial_state(images))
    logits = predictions.class_logits[2:, 0].mean(0) if method else predictions.class_logits[-1, 0]
    ranked = sorted(((float(logits[n, k]), n, k) for n in range(10) for k in range(3)), reverse=True)[:7]
    result = model.infer(images)[0]["instances"]
    assert result.pred_classes.tolist() == [k for _, _, k in ranked]
    for i, (logit, n, _) in enumerate(ranked):
        torch.testing.assert_close(result.scores[i], torch.tensor(logit).sigmoid(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result.pred_boxes.tensor[i], predictions.boxes[-1, 0, n], rtol=1e-4, atol=1e-3)
        mask = model.mask_embedding.decode(predictions.codes[-1, 0, n : n + 1])
        torch.testing.assert_close(result.pred_masks[i], mask, rtol=1e-3, atol=1e-4)
    assert model.mask_threshold == (0.45 if method else 0.5)


def test_output_contract():
    model = tiny_model("ISTR").eval()
    (sample,) = random_batch([1])
    sample.update(height=192, width=100)
    (output,) = model([sample])
    found = output["instances"]
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert found.pred_masks.shape == (len(found), 192, 100)
    assert found.pred_masks.dtype == torch.bool
    assert (found.pred_boxes.tensor[:, 2] <= 100).all()
    assert found.pred_boxes.nonempty().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("counts", [(0, 0), (14, 0), (1,)])
def test_hard_batches_reach_every_parameter(method, counts):
    """No objects at all; more objects (14) than queries (10); a single object."""
    model = tiny_model("ISTR", METHOD, method, *FEW_HEADS)
    losses = model(random_batch(counts, 64, 64))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert sum(counts) or all(loss == 0 for name, loss in losses.items() if "loss_ce" not in name)
    sum(losses.values()).backward()
    assert missing_gradients(model) == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(torch.isfinite(b).all() for b in model.buffers())


@pytest.mark.parametrize("method", METHODS)
def test_without_deep_supervision(method):
    model = tiny_model("ISTR", METHOD, method, *FEW_HEADS, "MODEL.ISTR.DEEP_SUPERVISION", False)
    losses = model(random_batch([2, 1]))
    assert set(losses) == {f"{term}_2" if method else term for term in TERMS}
    sum(losses.values()).backward()
    assert missing_gradients(model) == []
    assert all(p.grad is not None for p in model.roi_heads.heads[0].box_branch.parameters())
    assert model.eval()(random_batch([1]))


@pytest.mark.parametrize("cost", ["cosine", "l1", "dice"])
@pytest.mark.parametrize("loss", ["both", "l2", "dice"])
@pytest.mark.parametrize("embedding", ["PCA", "RawMask"])
def test_ablations(cost, loss, embedding):
    opts = ("MODEL.ISTR.MASK_COST", cost, "MODEL.ISTR.MASK_LOSS", loss, "MODEL.ISTR.EMBEDDING", embedding)
    model = tiny_model("ISTR", "MODEL.ISTR.NUM_HEADS", 2, *opts)
    losses = model(random_batch([2, 0], 64, 64))
    absent = {"both": (), "l2": ("loss_dice",), "dice": ("loss_feat",)}[loss]
    assert set(losses) == {term + suffix for term in TERMS if term not in absent for suffix in ("_0", "")}
    sum(losses.values()).backward()
    assert missing_gradients(model) == []


@pytest.mark.parametrize("method", ["", "AE"])
def test_autocast_with_extreme_weights(method):
    model = tiny_model("ISTR", METHOD, method, *FEW_HEADS)
    for head in model.roi_heads.heads:
        head.class_logits.weight.data *= 1e4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(random_batch([2, 1], 64, 64))
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert missing_gradients(model) == []


@pytest.mark.parametrize("method", METHODS)
def test_each_object_is_rasterised_once_a_step(method, monkeypatch):
    calls = []
    original = mask_module.polygons_to_bitmask
    for module in (mask_module, ground_truth):
        monkeypatch.setattr(module, "polygons_to_bitmask", lambda *args: calls.append(1) or original(*args))
    model = tiny_model("ISTR", METHOD, method)
    assert model(as_polygons(random_batch([3, 2])))
    assert len(calls) == 5


def test_one_copy_to_the_host_and_one_all_reduce_a_step(monkeypatch):
    calls = []
    for module, name in ((targets, "match_by_score"), (criterion, "mean_over_workers")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda x, name=name, original=original: calls.append(name) or original(x))
    model = tiny_model("ISTR")
    assert model(random_batch([3, 2]))
    assert sorted(calls) == ["match_by_score", "mean_over_workers"]


def test_noise_makes_codes_differ_between_matching_and_loss(monkeypatch):
    for noise in (False, True):
        model = tiny_model("ISTR", "MODEL.ISTR.ENCODE_NOISE", noise)
        seen = []
        original = type(model.mask_embedding).encode

        def encode(self, masks, seen=seen, original=original):
            seen.append(original(self, masks))
            return seen[-1]

        monkeypatch.setattr(type(model.mask_embedding), "encode", encode)
        model(random_batch([1]))
        monkeypatch.undo()
        codes = torch.cat(seen)
        assert len(codes) == (12 if noise else 7)  # of matching and of the losses of six heads
        assert ((codes - codes[0]).abs().max() > 1e-3) == noise


def test_explain():
    model = tiny_model("ISTR", METHOD, "AE").eval()
    (panels,) = model.explain(random_batch([1], 70, 100), max_instances=2)
    assert [title for title, _ in panels] == [f"head {i}" for i in range(1, 7)]
    assert all(picture.shape == (70, 100, 3) for _, picture in panels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_the_gpu_agrees(method, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    batch = random_batch([3, 2])
    losses = []
    for device in ("cpu", "cuda"):
        model = tiny_model("ISTR", METHOD, method, *FEW_HEADS).to(device)
        losses.append(model(batch))
        sum(losses[-1].values()).backward()
        assert missing_gradients(model) == []
        assert model.eval()(batch)
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name].cpu(), value, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (("MODEL.ISTR.ROI_ATTENTION", "static"), "ROI_ATTENTION"),
        (("MODEL.ISTR.NUM_DYNAMIC", 3), "NUM_DYNAMIC"),
        (("MODEL.ISTR.MASK_COST", "l2"), "MASK_COST"),
        (("MODEL.ISTR.MASK_LOSS", "none"), "MASK_LOSS"),
        (("MODEL.ISTR.HIDDEN_DIM", 32), "HIDDEN_DIM"),
        (("MODEL.ISTR.NHEADS", 3), "NHEADS"),
        (("MODEL.ROI_HEADS.IN_FEATURES", ["res4"]), "IN_FEATURES"),
        (("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0), "SAMPLING_RATIO"),
        (("MODEL.ISTR.MASK_ENCODING_METHOD", "AE", "MODEL.ISTR.MASK_COST", "dice"), "MASK_COST"),
        (("MODEL.ISTR.MASK_ENCODING_METHOD", "AE", "MODEL.ISTR.MASK_LOSS", "l2"), "MASK_LOSS"),
    ],
)
def test_values_that_cannot_be_used(opts, match):
    with pytest.raises(ConfigError, match=match):
        tiny_model("ISTR", *opts)
