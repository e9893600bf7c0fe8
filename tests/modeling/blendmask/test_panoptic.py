"""Panoptic BlendMask: the semantic loss and the combined map against loops, hard batches, empty images, the recipes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from instseg_d2.config import load_config
from instseg_d2.errors import ConfigError, DatasetError
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.modeling.blendmask.panoptic import Combination
from tests.tiny import random_batch, tiny_model

CONFIGS = Path(__file__).parents[3] / "configs"
IGNORE = 255
PANOPTIC = [
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 50,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3", "p4", "p5"],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4,
]  # fmt: skip


def panoptic_model(*opts, **kwargs):
    return tiny_model("BlendMask", *PANOPTIC, *opts, **kwargs)


def panoptic_batch(counts, *args, labelled=True, **kwargs):
    """Samples with blocks of random labels, some of them to be ignored; or with nothing labelled."""
    batch = random_batch(counts, *args, **kwargs)
    generator = torch.Generator().manual_seed(3)
    for x in batch:
        height, width = x["image"].shape[1:]
        blocks = torch.randint(0, 5, (-(-height // 16), -(-width // 16)), generator=generator)
        blocks[blocks == 4] = IGNORE
        labels = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width]
        x["sem_seg"] = labels.contiguous() if labelled else torch.full_like(labels, IGNORE)
    return batch


def confident(model):
    """The model in evaluation mode, sure enough of itself to give things and stuff."""
    head = model.proposal_generator.head
    generator = torch.Generator().manual_seed(5)
    for layer, scale in ((head.class_logits, 0.3), (head.box_distances, 0.02), (model.top_layer, 0.3)):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * scale
    head.class_logits.bias.data.fill_(1.0)
    head.box_distances.bias.data.fill_(2.0)
    model.basis_module.predictor.weight.data *= 0.05
    return model.eval()


def naive_semantic_loss(model, batch, weight):
    """Cross-entropy of the labelled pixels one by one, each image cut out of the padded batch."""
    logits = model.sem_seg_head.layers(model.backbone(model.preprocess(batch).tensor))
    logits = F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)
    terms = []
    for image, x in zip(logits, batch):
        for i, j in (x["sem_seg"] != IGNORE).nonzero().tolist():
            scores = image[:, i, j]
            terms.append(scores.exp().sum().log() - scores[x["sem_seg"][i, j]])
    return weight * sum(terms) / len(terms)


def test_semantic_loss_and_gradients():
    model = panoptic_model("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.5)
    batch = panoptic_batch([1], 40, 64) + panoptic_batch([0], 64, 33, seed=1)
    loss = model(batch)["loss_sem_seg"]
    expected = naive_semantic_loss(model, batch, 0.5)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    parameters = [model.sem_seg_head.predictor.weight, model.backbone.fpn_lateral3.weight]
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("counts", [(0,), (0, 2)])
def test_every_parameter_is_reached(counts, labelled):
    model = panoptic_model()
    losses = model(panoptic_batch(counts, labelled=labelled))
    assert set(losses) == {
        "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr", "loss_mask", "loss_basis_sem", "loss_sem_seg"
    }  # fmt: skip
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    assert (losses["loss_sem_seg"] > 0) == labelled
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_autocast_losses_are_finite_float32():
    model = panoptic_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(panoptic_batch([1, 0], 64, 64))
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


def naive_combination(scores, masks, labels, overlap, area, threshold):
    """The map pixel by pixel: {pixel: segment}, a segment being its place among all that are kept."""
    height, width = labels.shape
    owner, kept = {}, []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        pixels = [(i, j) for i in range(height) for j in range(width) if masks[index][i][j]]
        covered = [p for p in pixels if p in owner]
        if scores[index] < threshold or not pixels or len(covered) / len(pixels) > overlap:
            continue
        kept.append(("thing", index))
        owner.update({p: len(kept) for p in pixels if p not in owner})
    for label in range(1, int(labels.max()) + 1):
        pixels = [(i, j) for i in range(height) for j in range(width) if labels[i, j] == label and (i, j) not in owner]
        if pixels and len(pixels) >= area:
            kept.append(("stuff", label))
            owner.update(dict.fromkeys(pixels, len(kept)))
    ids = np.zeros((height, width), np.int32)
    for pixel, segment in owner.items():
        ids[pixel] = segment
    return ids, kept


@pytest.mark.parametrize("values", [(0.4, 30, 0.45), (0.0, 0, 0.0), (1.0, 90, 0.7)])
def test_combination_against_loops(values):
    rng = np.random.default_rng(2)
    for count in (0, 1, 6):
        y, x = np.mgrid[:18, :22]
        centres = rng.uniform((0, 0), (18, 22), (count, 2))
        radii = rng.uniform(2, 8, count)
        masks = [(y - cy) ** 2 + (x - cx) ** 2 < r * r for (cy, cx), r in zip(centres, radii)]
        labels = rng.integers(0, 4, (3, 2)).repeat(6, 0).repeat(11, 1)
        instances = Instances((18, 22))
        instances.scores = torch.from_numpy(rng.permutation(np.linspace(0.2, 0.9, count)))
        instances.pred_classes = torch.arange(count)
        instances.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, 18, 22))
        ids, segments = Combination(*values)(instances, torch.from_numpy(labels))
        expected, kept = naive_combination(instances.scores.tolist(), masks, labels, *values)
        assert np.array_equal(ids.numpy(), expected)
        assert [("thing" if s["isthing"] else "stuff", s["category_id"]) for s in segments] == kept
        assert [s["id"] for s in segments] == list(range(1, len(kept) + 1))


def test_results_of_a_batch():
    """Instances are those of the model without its semantic head; the map has the requested size and both kinds."""
    model = confident(panoptic_model("MODEL.FCOS.PRE_NMS_TOPK_TEST", 30))
    batch = random_batch([1], 96, 128) + random_batch([0], 64, 100)
    batch[0].update(height=77, width=150)
    outputs = model(batch)
    images = model.preprocess(batch)
    found = [x["instances"] for x in model.infer(images)]
    plain = [detector_postprocess(r, x["height"], x["width"]) for r, x in zip(found, batch)]
    logits = model.sem_seg_head(model.backbone(images.tensor))[0]
    kinds = set()
    for output, instances, x, image_logits in zip(outputs, plain, batch, logits):
        size = (x["height"], x["width"])
        found = output["instances"]
        assert len(found) == len(instances) > 0
        assert torch.equal(found.scores, instances.scores)
        assert torch.equal(found.pred_masks, instances.pred_masks.bool())
        height, width = x["image"].shape[1:]
        expected = F.interpolate(image_logits[None, :, :height, :width], size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(output["sem_seg"], expected)
        ids, segments = output["panoptic_seg"]
        assert ids.shape == size
        assert sorted(set(ids.unique().tolist()) - {0}) == [s["id"] for s in segments]
        for segment in segments:
            kinds.add(segment["isthing"])
            inside = ids == segment["id"]
            if segment["isthing"]:
                assert segment["score"] >= 0.5
                assert found.pred_masks[segment["instance_id"]][inside].all()
            else:
                assert (expected.argmax(0)[inside] == segment["category_id"]).all()
                assert inside.sum() >= 50
    assert kinds == {True, False}


def test_every_form_of_masks():
    """Run lengths give the same map; without masks there is none, but the semantic logits stay."""
    model = confident(panoptic_model("MODEL.FCOS.PRE_NMS_TOPK_TEST", 30))
    batch = random_batch([1], 96, 128)
    (full,), (coded,), (bare,) = (model.detect(batch, masks=form) for form in ("full", "run_lengths", "none"))
    assert torch.equal(coded["instances"].pred_masks.decode(), full["instances"].pred_masks)
    assert torch.equal(coded["panoptic_seg"][0], full["panoptic_seg"][0])
    assert coded["panoptic_seg"][1] == full["panoptic_seg"][1]
    things = [s for s in full["panoptic_seg"][1] if s["isthing"]]
    assert len(things) > 1
    assert any(s["instance_id"] != i for i, s in enumerate(things))
    assert bare.keys() == {"instances", "sem_seg"}
    assert torch.equal(bare["sem_seg"], full["sem_seg"])


def test_the_threshold_of_detection_rules_the_map():
    """It is made of the instances that are left."""
    model = confident(panoptic_model("MODEL.FCOS.PRE_NMS_TOPK_TEST", 30))
    batch = random_batch([1], 96, 128)
    (every,) = model.detect(batch)
    threshold = float(every["instances"].scores.sort(descending=True).values[1])
    (found,) = model.detect(batch, threshold)
    assert len(found["instances"]) < len(every["instances"])
    assert min(s["score"] for s in found["panoptic_seg"][1] if s["isthing"]) >= threshold
    (none,) = model.detect(batch, 1.1)
    assert len(none["instances"]) == 0
    assert not any(s["isthing"] for s in none["panoptic_seg"][1])


def test_nothing_found_leaves_stuff_alone():
    model = panoptic_model().eval()
    (output,) = model(random_batch([0]))
    assert len(output["instances"]) == 0
    ids, segments = output["panoptic_seg"]
    labels = output["sem_seg"].argmax(0)
    assert all(not s["isthing"] for s in segments)
    for s in segments:
        assert torch.equal(ids == s["id"], labels == s["category_id"])


def test_optimised_inference_is_the_same():
    model = confident(panoptic_model("MODEL.SEM_SEG_HEAD.NORM", "BN"))
    batch = random_batch([1])
    (a,), (b,) = model(batch), optimize_for_inference(model)(batch)
    assert (a["sem_seg"] - b["sem_seg"]).abs().max() < 1e-3 * a["sem_seg"].abs().max()
    # Of random weights, so there are many near ties.
    assert (a["panoptic_seg"][0] != b["panoptic_seg"][0]).float().mean() < 0.03


def test_without_the_switch_there_is_no_head():
    model = tiny_model("BlendMask")
    assert model.sem_seg_head is None
    assert not any("sem_seg" in name for name in model.state_dict())
    assert "panoptic_seg" not in model.eval()(random_batch([0]))[0]


def test_wrong_configs_and_data_name_the_key():
    with pytest.raises(ConfigError, match=r"SEM_SEG_HEAD\.IN_FEATURES names p2.*COMBINE\.ENABLED"):
        panoptic_model("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"])
    with pytest.raises(DatasetError, match=r"semantic maps.*COMBINE\.ENABLED"):
        panoptic_model()(random_batch([1]))


# depth, iterations, steps, training scales, crop
RECIPES = {
    "R_50_1x": (50, 90000, (60000, 80000), (640, 672, 704, 736, 768, 800), False),
    "R_50_3x": (50, 270000, (210000, 250000), (640, 672, 704, 736, 768, 800), False),
    "R_101_3x": (101, 270000, (210000, 250000), (640, 672, 704, 736, 768, 800), False),
    "R_101_dcni3_5x": (101, 400000, (280000, 360000), (640, 864), True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_recipes(name):
    cfg = load_config(str(CONFIGS / f"BlendMask/Panoptic/{name}.yaml"))
    depth, iterations, steps, scales, deformable = RECIPES[name]
    model, combine, head = cfg.MODEL, cfg.MODEL.PANOPTIC_FPN.COMBINE, cfg.MODEL.SEM_SEG_HEAD
    assert (model.RESNETS.DEPTH, model.META_ARCHITECTURE) == (depth, "BlendMask")
    assert f"MSRA/R-{depth}.pkl" in model.WEIGHTS
    assert (cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS), cfg.SOLVER.BASE_LR) == (iterations, steps, 0.01)
    assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN) == (scales, 1333)
    assert (cfg.INPUT.CROP.ENABLED, any(model.RESNETS.DEFORM_ON_PER_STAGE)) == (deformable, deformable)
    assert model.FPN.IN_FEATURES == model.RESNETS.OUT_FEATURES == ["res2", "res3", "res4", "res5"]
    assert (combine.ENABLED, combine.OVERLAP_THRESH, combine.STUFF_AREA_LIMIT) == (True, 0.4, 4096)
    assert combine.INSTANCES_CONFIDENCE_THRESH == 0.45
    assert (head.NAME, head.NUM_CLASSES, head.LOSS_WEIGHT, head.NORM) == ("SemSegFPNHead", 54, 0.5, "GN")
    assert (head.IN_FEATURES, head.COMMON_STRIDE, head.IGNORE_VALUE) == (["p2", "p3", "p4", "p5"], 4, 255)
    assert cfg.DATASETS.TRAIN == ("coco_2017_train_panoptic_separated",)
    assert cfg.DATASETS.TEST == ("coco_2017_val_panoptic_separated",)
