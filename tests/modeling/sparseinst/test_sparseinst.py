"""SparseInst: forward, matching, losses, rescoring and output against naive transcriptions of the paper's equations."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from instseg_d2.errors import ConfigError
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.modeling.matching import match_by_score
from instseg_d2.modeling.postprocessing import masks_to_boxes, resize_in_chunks
from instseg_d2.modeling.sparseinst.decoder import coordinate_channels
from instseg_d2.modeling.sparseinst.targets import resized_targets
from projects.benchmarks.plain.sparseinst import plain_infer, plain_losses, plain_postprocess
from tests.tiny import random_batch, tiny_model


def naive_forward(model, images, groups):
    """The decoder's outputs from the encoder's features, image by image, instance by instance."""
    encoder, decoder = model.encoder, model.decoder
    maps = [lateral(x) for lateral, x in zip(encoder.laterals, model.backbone(images.tensor).values())]
    coarse = maps[2]
    pooled = []
    for size, conv in zip((1, 2, 3, 6), encoder.context.branches):
        y = F.relu(conv(F.adaptive_avg_pool2d(coarse, size)))
        pooled.append(F.interpolate(y, coarse.shape[-2:], mode="bilinear", align_corners=False))
    top = F.relu(encoder.context.bottleneck(torch.cat([*pooled, coarse], 1)))
    out5 = encoder.outputs[2](top)
    top = maps[1] + F.interpolate(top, scale_factor=2, mode="nearest")
    out4 = encoder.outputs[1](top)
    top = maps[0] + F.interpolate(top, scale_factor=2, mode="nearest")
    out3 = encoder.outputs[0](top)
    up = [F.interpolate(x, out3.shape[-2:], mode="bilinear", align_corners=False) for x in (out4, out5)]
    x = encoder.fusion(torch.cat([out3, *up], 1))
    x = torch.cat([coordinate_channels(x), x], 1)
    branch = decoder.instance_branch
    features = branch.convs(x)
    raw = branch.iam_conv(features)
    results = []
    for image in range(len(x)):
        vectors = []
        for n in range(branch.num_masks):
            parts = []
            for g in range(max(groups, 1)):
                logit = raw[image, g * branch.num_masks + n]
                if branch.softmax_bias is not None:
                    weight = (logit + branch.softmax_bias).flatten().softmax(0).view_as(logit)
                else:
                    weight = logit.sigmoid() / max(logit.sigmoid().sum(), 1e-6)
                parts.append((features[image] * weight).sum((1, 2)))
            vectors.append(torch.cat(parts))
        v = torch.stack(vectors)
        if groups:
            v = F.relu(branch.fc(v))
        mask_features = decoder.mask_branch.projection(decoder.mask_branch.convs(x[image : image + 1]))[0]
        logits = torch.stack([(k[:, None, None] * mask_features).sum(0) for k in branch.mask_kernel(v)])
        logits = F.interpolate(logits[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
        results.append((branch.class_logits(v), branch.objectness(v)[:, 0], logits))
    return [torch.stack(parts) for parts in zip(*results)]


VARIANTS = [("BaseIAMDecoder", 0)] + [
    (name, groups) for name in ("GroupIAMDecoder", "GroupIAMSoftDecoder") for groups in (1, 2, 4)
]


@pytest.mark.parametrize(("name", "groups"), VARIANTS)
def test_forward(name, groups):
    model = tiny_model(
        "SparseInst", "MODEL.SPARSE_INST.DECODER.NAME", name, "MODEL.SPARSE_INST.DECODER.GROUPS", max(groups, 1)
    )
    for layer in (model.decoder.instance_branch.iam_conv, model.decoder.instance_branch.mask_kernel):
        torch.nn.init.normal_(layer.weight, std=0.2)
    images = model.preprocess(random_batch([1, 1], 64, 96))
    found = model.outputs(images)
    expected = naive_forward(model, images, groups)
    for key, value in zip(("class_logits", "objectness_logits", "mask_logits"), expected):
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-3)
    assert found["mask_logits"].shape == (2, 10, 16, 24)
    assert found["activation_maps"].shape == (2, 10, max(groups, 1), 8, 12)
    assert found["activation_maps"].sum((-2, -1)).allclose(torch.ones(1))


def test_coordinates_by_hand():
    coordinates = coordinate_channels(torch.zeros(1, 5, 2, 3))[0]
    assert coordinates[0].tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert coordinates[1].tolist() == [[-1, -1, -1], [1, 1, 1]]


def naive_losses(model, outputs, instances, canvas):
    """Every loss term, pair by pair, with the best matching by brute force."""
    classes, masks, objectness = (outputs[k] for k in ("class_logits", "mask_logits", "objectness_logits"))
    count = max(sum(len(x) for x in instances), 1)
    focal, dice, pixel, obj = 0.0, 0.0, [], []
    for image, x in enumerate(instances):
        height, width = x.image_size
        padded = torch.zeros(len(x), *canvas)
        padded[:, :height, :width] = x.gt_masks.tensor.float()
        size = masks.shape[-2:]
        targets = F.interpolate(padded[None], size, mode="bilinear", align_corners=False)[0] if len(x) else padded
        p = masks[image].sigmoid()

        def pair_dice(i, k, p=p, targets=targets):
            return 2 * (p[i] * targets[k]).sum() / ((p[i] ** 2).sum() + (targets[k] ** 2).sum() + 1e-4)

        def score(i, k, image=image, x=x, pair_dice=pair_dice):
            return float((classes[image, i, x.gt_classes[k]].sigmoid() ** 0.2 * pair_dice(i, k) ** 0.8).detach())

        matrix = [[score(i, k) for k in range(len(x))] for i in range(len(p))]
        best = max(
            itertools.permutations(range(len(p)), len(x)), key=lambda s, m=matrix: sum(m[i][k] for k, i in enumerate(s))
        )
        labels = torch.zeros_like(classes[image])
        for k, i in enumerate(best):
            labels[i, x.gt_classes[k]] = 1
            dice = dice + 1 - pair_dice(i, k)
            pixel.append(-(targets[k] * p[i].log() + (1 - targets[k]) * (1 - p[i]).log()))
            inside, wanted = p[i] >= 0.4, targets[k] > 0.5
            iou = float((inside & wanted).sum() / ((inside | wanted).sum() + 1e-6))
            o = objectness[image, i].sigmoid()
            obj.append(-(iou * o.log() + (1 - iou) * (1 - o).log()))
        q = classes[image].sigmoid()
        focal = focal - (labels * 0.25 * (1 - q) ** 2 * q.log() + (1 - labels) * 0.75 * q**2 * (1 - q).log()).sum()
    return {
        "loss_ce": 2 * focal / count,
        "loss_mask": 5 * torch.stack(pixel).mean() if pixel else torch.tensor(0.0),
        "loss_dice": torch.as_tensor(2 * dice / count),
        "loss_objectness": torch.stack(obj).mean() if obj else torch.tensor(0.0),
    }


@pytest.mark.parametrize("counts", [(2, 3), (0, 2), (1, 0)])
def test_losses_and_gradients(counts):
    model = tiny_model("SparseInst", "MODEL.SPARSE_INST.DECODER.NUM_MASKS", 5)
    batch = random_batch(counts, 64, 80) if 0 not in counts else random_batch(counts, 64, 96)
    images = model.preprocess(batch)
    outputs = model.outputs(images)
    canvas = tuple(images.tensor.shape[-2:])
    names = ("class_logits", "mask_logits", "objectness_logits")
    leaves = {k: torch.randn(outputs[k].shape).requires_grad_() for k in names}
    instances = [x["instances"] for x in batch]
    found = model.criterion(leaves, instances, canvas)
    expected = naive_losses(model, leaves, instances, canvas)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    grads = torch.autograd.grad(sum(found.values()), list(leaves.values()))
    wanted = torch.autograd.grad(sum(expected.values()), list(leaves.values()))
    for a, b in zip(grads, wanted):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("counts", [(0,), (0, 0), (3, 0), (25, 1)])
def test_hard_batches_reach_every_parameter(counts):
    """No objects at all; more objects (25) than instance slots (10)."""
    model = tiny_model("SparseInst")
    losses = model(random_batch(counts))
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice", "loss_objectness"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("scale", [1.0, 3.0, 4.0])
def test_other_scales_of_the_masks(scale):
    """Also without objects, whose targets are resized in another way than at scale 2."""
    model = tiny_model("SparseInst", "MODEL.SPARSE_INST.DECODER.SCALE_FACTOR", scale)
    losses = model(random_batch([0, 2], 70, 100))
    assert all(torch.isfinite(loss) for loss in losses.values())
    losses = model(random_batch([0]))
    assert float(losses["loss_mask"]) == float(losses["loss_dice"]) == float(losses["loss_objectness"]) == 0


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7, 80])
def test_class_counts(num_classes):
    model = tiny_model("SparseInst", num_classes=num_classes)
    assert all(torch.isfinite(v) for v in model(random_batch([2], num_classes=num_classes)).values())
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_extreme_logits(dtype):
    """Mask logits beyond float16: finite losses and scores (float16 gradients are left to the gradient scaler)."""
    model = tiny_model("SparseInst", "MODEL.SPARSE_INST.CLS_THRESHOLD", 0.0)
    for layer in (model.decoder.instance_branch.mask_kernel, model.decoder.mask_branch.projection):
        layer.weight.data.mul_(500)
    batch = random_batch([3, 2])
    with torch.autocast("cpu", dtype=dtype):
        outputs = model.outputs(model.preprocess(batch))
        losses = model(batch)
        detections = model.eval()(batch)
    assert outputs["mask_logits"].abs().max() > 7e4
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert dtype == torch.float16 or all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(x["instances"].scores.isfinite().all() for x in detections)


KEY = "MODEL.SPARSE_INST."


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([KEY + "ENCODER.NORM", "GN"], "ENCODER.NORM is 'GN'; it must be empty, BN or SyncBN"),
        ([KEY + "MATCHER.SIGMA", 1.0], "MATCHER.SIGMA is 1.0; it needs the slots' places: set DECODER.START tiles"),
        ([KEY + "ENCODER.IN_FEATURES", ["res5", "res4", "res3"]], "finest first"),
        ([KEY + "ENCODER.IN_FEATURES", []], "one or more values, each a name"),
        ([KEY + "ENCODER.IN_FEATURES", ["res3", "p4"]], "IN_FEATURES names p4; the backbone has res3"),
        ([KEY + "LOSS.NAME", "Other"], "LOSS.NAME is 'Other'; it must be SparseInstCriterion"),
        ([KEY + "MATCHER.NAME", "Other"], "MATCHER.NAME is 'Other'; it must be SparseInstMatcher"),
        ([KEY + "LOSS.ITEMS", ("labels", "boxes")], "LOSS.ITEMS is .*'boxes'.*each labels or masks"),
        ([KEY + "DECODER.NUM_MASKS", 0], "DECODER.NUM_MASKS is 0; it must be at least 1"),
        ([KEY + "DECODER.NAME", "GroupIAMDecoder", KEY + "DECODER.GROUPS", 0], "GROUPS is 0; it must be at least 1"),
        (
            [KEY + "DECODER.NAME", "GroupIAMDecoder", KEY + "DECODER.GROUPS", 3],
            "32; .* a multiple of GROUPS, 3",
        ),
        ([KEY + "DECODER.MASK.CONVS", 0], "DECODER.MASK.CONVS is 0; it must be at least 1"),
    ],
)
def test_values_that_cannot_be_used(opts, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model("SparseInst", *opts)


def test_matching_by_trying_all():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(5, m, generator=generator) for m in (3, 0, 5, 7)]
    for matrix, (rows, columns) in zip(scores, match_by_score(scores)):
        slots, objects = matrix.shape
        assert len(rows) == min(slots, objects)
        tall = matrix if slots >= objects else matrix.T
        order = itertools.permutations(range(tall.shape[0]), tall.shape[1])
        best = max(sum(float(tall[i, k]) for k, i in enumerate(choice)) for choice in order)
        assert math.isclose(float(matrix[rows, columns].sum()), best, rel_tol=1e-5, abs_tol=1e-9)


def test_scores_that_are_not_finite_are_the_worst():
    matrix = torch.tensor([[float("nan"), 0.1], [0.2, float("-inf")]])
    ((rows, columns),) = match_by_score([matrix])
    assert list(zip(rows.tolist(), columns.tolist())) == [(0, 1), (1, 0)]


def test_targets_are_the_middle_of_each_cell():
    (sample,) = random_batch([3], 50, 90)
    target = resized_targets(sample["instances"], (64, 96), (16, 24))
    padded = torch.zeros(3, 64, 96)
    padded[:, :50, :90] = sample["instances"].gt_masks.tensor
    expected = F.interpolate(padded[None], (16, 24), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(target, expected)
    torch.testing.assert_close(
        resized_targets(sample["instances"], (64, 96), (13, 11)),
        F.interpolate(padded[None], (13, 11), mode="bilinear", align_corners=False)[0],
    )


def naive_results(model, sample):
    """Scores, classes and masks of one image, slot by slot."""
    images = model.preprocess([sample])
    outputs = model.outputs(images)
    height, width = sample["image"].shape[-2:]
    found = []
    for logits, objectness, mask in zip(*(outputs[k][0] for k in ("class_logits", "objectness_logits", "mask_logits"))):
        score, label = (logits.sigmoid() * objectness.sigmoid()).sqrt().max(0)
        if score <= 0.005:
            continue
        p = mask.sigmoid()
        inside = p > 0.45
        score = score * ((p * inside).sum() / (inside.sum() + 1e-6))
        full = F.interpolate(p[None, None], images.tensor.shape[-2:], mode="bilinear", align_corners=False)
        full = F.interpolate(
            full[..., :height, :width], (sample["height"], sample["width"]), mode="bilinear", align_corners=False
        )
        found.append((float(score), int(label), full[0, 0] > 0.45))
    return found


def test_inference():
    model = tiny_model("SparseInst").eval()
    branch = model.decoder.instance_branch
    torch.nn.init.normal_(branch.mask_kernel.weight, std=1.0)
    torch.nn.init.normal_(branch.class_logits.weight, std=1.0)
    (sample,) = random_batch([2], 70, 100)
    sample.update(height=140, width=90)
    with torch.no_grad():
        expected = naive_results(model, sample)
        (output,) = model([sample])
    found = output["instances"]
    assert len(found) == len(expected) > 0
    assert found.image_size == (140, 90)
    for i, (score, label, mask) in enumerate(expected):
        assert math.isclose(found.scores[i], score, rel_tol=1e-4, abs_tol=1e-6)
        assert found.pred_classes[i] == label
        assert (found.pred_masks[i] != mask).float().mean() < 1e-4
        ys, xs = found.pred_masks[i].nonzero(as_tuple=True)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
        assert found.pred_boxes.tensor[i].tolist() == [float(v) for v in box]


def test_nothing_found_has_all_fields_and_the_best_are_kept():
    model = tiny_model("SparseInst", "MODEL.SPARSE_INST.CLS_THRESHOLD", 0.9).eval()
    (output,) = model(random_batch([1]))
    assert set(output["instances"].get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert output["instances"].pred_masks.shape == (0, 96, 128)
    model = tiny_model("SparseInst", "MODEL.SPARSE_INST.CLS_THRESHOLD", 0.0).eval()
    torch.nn.init.normal_(model.decoder.instance_branch.mask_kernel.weight, std=1.0)
    (every,) = model(random_batch([1]))
    model.max_detections = 4
    (some,) = model(random_batch([1]))
    assert len(some["instances"]) == 4
    assert torch.equal(some["instances"].scores.sort().values, every["instances"].scores.sort().values[-4:])


# (cells, canvas, crop, output): exact, enlarged, reduced, nothing to resize after the crop, and a scale of no integer.
RESIZES = [
    ((8, 10), (32, 40), (30, 37), (50, 61)),
    ((8, 10), (32, 40), (30, 37), (30, 37)),
    ((20, 24), (80, 96), (77, 90), (31, 200)),
    ((24, 16), (96, 64), (96, 64), (7, 9)),
    ((8, 10), (36, 45), (30, 37), (50, 61)),
    ((8, 16), (32, 64), (32, 33), (40, 41)),
    ((16, 8), (64, 32), (33, 32), (33, 32)),
]


@pytest.mark.parametrize(("cells", "canvas", "crop", "size"), RESIZES)
def test_resized_masks(monkeypatch, cells, canvas, crop, size):
    """Equal to two whole-image resizes and a comparison, for any chunks and skipped parts."""
    from instseg_d2.modeling.postprocessing import masks as module

    generator = torch.Generator().manual_seed(0)
    sparse = torch.rand(40, *cells, generator=generator) * (torch.rand(40, *cells, generator=generator) > 0.9)
    solid = F.interpolate(torch.rand(20, 1, 3, 3, generator=generator), cells, mode="bicubic")[:, 0].clamp(0, 1)
    corner = torch.zeros(1, *cells)
    corner[0, -1, -1] = 1  # in the padding, where there is much of it
    masks = torch.cat([sparse, solid, corner, torch.zeros(1, *cells)])
    whole = F.interpolate(masks[None], canvas, mode="bilinear", align_corners=False)[..., : crop[0], : crop[1]]
    whole = F.interpolate(whole, size, mode="bilinear", align_corners=False)[0]
    clear = (whole - 0.45).abs() > 1e-5  # rounding may decide the others
    assert clear.float().mean() > 0.999
    for pixels in (1 << 24, 1):
        monkeypatch.setattr(module, "CHUNK_PIXELS", pixels)
        found = resize_in_chunks(masks, canvas, crop, size, 0.45)
        assert found.any()
        assert not found[-1].any()
        assert torch.equal(found[clear], (whole > 0.45)[clear])


def test_boxes_of_masks_by_hand():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 3:7] = True
    masks[1, 5, 7] = True
    assert masks_to_boxes(masks).tolist() == [[3, 2, 7, 4], [7, 5, 8, 6], [0, 0, 0, 0]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize(("name", "groups"), [VARIANTS[0], VARIANTS[3], VARIANTS[6]])
def test_plain_and_optimised_inference_agree(name, groups):
    model = tiny_model(
        "SparseInst", "MODEL.SPARSE_INST.DECODER.NAME", name, "MODEL.SPARSE_INST.DECODER.GROUPS", max(groups, 1)
    ).eval()
    for layer in (model.decoder.instance_branch.iam_conv, model.decoder.instance_branch.mask_kernel):
        torch.nn.init.normal_(layer.weight, std=0.3)
    batch = random_batch([1, 1], 90, 120)
    for sample in batch:
        sample.update(height=100, width=171)
    images = model.preprocess(batch)
    expected = [plain_postprocess(model, result, (100, 171)) for result in plain_infer(model, images)]
    for path in (model, optimize_for_inference(model)):
        for output, wanted in zip(path(batch), expected):
            output = output["instances"]
            torch.testing.assert_close(output.scores, wanted.scores, rtol=1e-4, atol=1e-5)
            assert torch.equal(output.pred_classes, wanted.pred_classes)
            different = (output.pred_masks != wanted.pred_masks).flatten(1).sum(1)
            assert wanted.pred_masks.any()
            assert (different <= 1 + wanted.pred_masks.flatten(1).sum(1) // 1000).all()


def test_plain_losses_agree():
    model = tiny_model("SparseInst", "MODEL.SPARSE_INST.DECODER.NAME", "GroupIAMDecoder").train()
    batch = random_batch([3, 1, 2])
    losses = [model(batch), plain_losses(model, model.preprocess(batch), [x["instances"] for x in batch])]
    gradients = []
    for found in losses:
        model.zero_grad()
        sum(found.values()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert set(losses[0]) == set(losses[1])
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])
    for own, plain in zip(*gradients):
        torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()) + 1e-7)


def test_explain_shows_map_and_mask_of_the_best():
    model = tiny_model("SparseInst", "MODEL.SPARSE_INST.CLS_THRESHOLD", 0.0).eval()
    torch.nn.init.normal_(model.decoder.instance_branch.mask_kernel.weight, std=1.0)
    batch = random_batch([1], 90, 120)
    (panels,) = model.explain(batch, max_instances=3)
    assert [title.split(": ")[1] for title, _ in panels] == ["activation map", "mask"] * 3
    assert all(picture.shape == (90, 120, 3) and picture.dtype.name == "uint8" for _, picture in panels)
    scores = model(batch)[0]["instances"].scores
    assert panels[0][0].startswith(f"#1, {float(scores.max()):.0%}")

    # A map that is alike everywhere lays one colour on a plain image.
    branch = model.decoder.instance_branch
    image = torch.full((3, 64, 96), 100, dtype=torch.uint8)
    torch.nn.init.zeros_(branch.iam_conv.weight)
    (panels,) = model.explain([{"image": image}], max_instances=1)
    assert len({tuple(pixel) for pixel in panels[0][1].reshape(-1, 3)}) == 1
