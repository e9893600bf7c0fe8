"""BlendMask as a whole: inference against the plain path, losses against the equations, hard batches, ablations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from torchvision.ops import roi_align

from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.modeling.ground_truth import semantic_map
from projects.benchmarks.plain.blendmask import plain_infer
from tests.tiny import random_batch, random_instances, tiny_model

FIELDS = {"pred_boxes", "scores", "pred_classes", "pred_masks"}


def confident(model):
    """The model in evaluation mode, with enough spread in its outputs to detect something."""
    generator = torch.Generator().manual_seed(5)
    head = model.proposal_generator.head
    for layer, scale in (
        (head.class_logits, 0.3),
        (head.box_distances, 0.02),
        (head.quality_logits, 0.2),
        (model.top_layer, 0.3),
    ):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * scale
    model.basis_module.predictor.weight.data *= 0.05  # logits of a few units: masks neither flat nor saturated
    head.class_logits.bias.data.fill_(-1.0)
    head.box_distances.bias.data.fill_(1.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def assert_same_detections(found, expected, mask_difference=0.0, min_count=5):
    for a, b in zip(found, expected):
        a, b = a["instances"], b["instances"]
        assert len(a) == len(b) >= min_count
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=0.01)
        assert torch.equal(a.pred_classes, b.pred_classes)
        assert a.pred_masks.dtype == torch.bool
        assert a.pred_masks.shape == b.pred_masks.shape
        assert (a.pred_masks != b.pred_masks).float().mean() <= mask_difference


@pytest.mark.parametrize("threshold_with_quality", [True, False])
@pytest.mark.parametrize("top_interp", ["bilinear", "nearest"])
def test_inference_equals_the_plain_path(threshold_with_quality, top_interp):
    model = confident(
        tiny_model(
            "BlendMask",
            "MODEL.FCOS.THRESH_WITH_CTR", threshold_with_quality,
            "MODEL.BLENDMASK.TOP_INTERP", top_interp,
            "MODEL.FCOS.PRE_NMS_TOPK_TEST", 50,
        )
    )  # fmt: skip
    batch = random_batch([1, 1], 100, 120) + random_batch([0], 64, 160)
    batch[0].update(height=77, width=211)
    plain = [
        {"instances": detector_postprocess(result, x["height"], x["width"])}
        for result, x in zip(plain_infer(model, model.preprocess(batch)), batch)
    ]
    assert_same_detections(model(batch), plain)
    # Folding the norms moves boxes by 1e-5 pixels. Outside the bases a mask is exactly 0.5: there it may flip.
    assert_same_detections(optimize_for_inference(model)(batch), plain, mask_difference=1e-3)


def test_optimising_leaves_the_model_as_it_was():
    model = confident(tiny_model("BlendMask"))
    before = copy.deepcopy(model.state_dict())
    optimize_for_inference(model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values()))


def test_nothing_found_has_all_fields():
    model = tiny_model("BlendMask").eval()
    (output,) = model(random_batch([3]))
    assert len(output["instances"]) == 0
    assert set(output["instances"].get_fields()) == FIELDS
    assert output["instances"].pred_masks.shape == (0, 96, 128)
    assert output["instances"].pred_masks.dtype == torch.bool


def naive_mask_loss(model, batch):
    """loss_mask by the equations of the paper, from the dense top layer, location by location."""
    instances = [x["instances"] for x in batch]
    features = model.backbone(model.preprocess(batch).tensor)
    fcos, blender = model.proposal_generator, model.blender
    outputs = fcos.outputs(features)
    positives = fcos.match(outputs, instances)
    bases = model.basis_module(features)
    dense = [model.top_layer(tower).permute(0, 2, 3, 1).flatten(0, 2) for tower in outputs.box_tower]
    dense = torch.cat(dense)
    owner = [(image, x.gt_boxes.tensor[i], x.gt_masks[i]) for image, x in enumerate(instances) for i in range(len(x))]
    total, weight_sum = 0.0, 0.0
    size = blender.resolution
    for row, obj, weight in zip(positives.rows, positives.objects, positives.centerness):
        image, box, mask = owner[obj]
        roi = torch.cat([torch.tensor([float(image)]), box])[None]
        crop = roi_align(bases, roi, size, 0.25, sampling_ratio=1, aligned=True)[0]
        attention = dense[row].view(1, blender.num_bases, blender.attention_size, blender.attention_size)
        attention = F.interpolate(attention, (size, size), mode="bilinear", align_corners=False)[0].softmax(0)
        probability = (crop * attention).sum(0).sigmoid()
        target = mask.crop_and_resize(box[None], size)[0].float()
        bce = -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()
        total = total + weight * bce
        weight_sum = weight_sum + weight
    return total / weight_sum


def test_mask_loss_and_gradients():
    model = tiny_model("BlendMask", "MODEL.BLENDMASK.INSTANCE_LOSS_WEIGHT", 0.7)
    batch = random_batch([2, 0, 1], 64, 64)
    loss = model(batch)["loss_mask"]
    expected = 0.7 * naive_mask_loss(model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    parameters = [model.top_layer.weight, model.top_layer.bias, model.basis_module.predictor.weight]
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)


def test_semantic_loss():
    model = tiny_model("BlendMask")
    batch = random_batch([3, 0], 64, 96)
    instances = [x["instances"] for x in batch]
    loss = model(batch)["loss_basis_sem"]
    logits = model.basis_module.semantic_head(model.backbone(model.preprocess(batch).tensor)["p3"])
    probabilities = logits.softmax(1)
    total = []
    for image, x in enumerate(instances):
        for i in range(8):
            for j in range(12):
                label = 0
                for k in range(len(x)):
                    if x.gt_masks.tensor[k, 8 * i, 8 * j]:
                        label = int(x.gt_classes[k]) + 1
                total.append(-probabilities[image, label, i, j].log())
    torch.testing.assert_close(loss, 0.3 * torch.stack(total).mean(), rtol=1e-4, atol=1e-6)
    # The sample's own map wins over what the masks say.
    batch[0]["basis_sem"] = torch.zeros(64, 96, dtype=torch.int64)
    assert not torch.isclose(model(batch)["loss_basis_sem"], loss)


def test_polygon_semantic_target_equals_its_bitmask():
    from detectron2.structures import BitMasks, PolygonMasks

    instances = random_instances(2, 40, 48, 3, torch.Generator().manual_seed(0))
    polygons = [[[5.0, 5.0, 30.0, 6.0, 28.0, 30.0]], [[10.0, 10.0, 40.0, 10.0, 40.0, 35.0, 12.0, 38.0]]]
    instances.gt_masks = PolygonMasks(polygons)
    by_polygon = semantic_map(instances, 4)
    instances.gt_masks = BitMasks.from_polygon_masks(PolygonMasks(polygons), 40, 48)
    assert torch.equal(by_polygon, semantic_map(instances, 4))
    assert by_polygon.max() > 0


@pytest.mark.parametrize("counts", [(0,), (0, 0), (0, 3), (5, 1, 0)])
def test_every_parameter_is_reached(counts):
    model = tiny_model("BlendMask")
    losses = model(random_batch(counts))
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    if sum(counts) == 0:
        assert losses["loss_mask"] == 0
        assert losses["loss_fcos_loc"] == 0


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7, 80])
def test_class_counts(num_classes):
    model = tiny_model("BlendMask", num_classes=num_classes)
    losses = model(random_batch([2, 1], num_classes=num_classes))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.proposal_generator.head.class_logits.out_channels == num_classes
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "offset" not in name:
            assert parameter.std() > 0, name
    model = confident(model)
    (output,) = model(random_batch([1]))
    assert output["instances"].pred_classes.max() < num_classes


def test_evaluation_ignores_annotations_and_needs_none():
    model = confident(tiny_model("BlendMask"))
    batch = random_batch([2])
    with_annotations = model(batch)[0]["instances"]
    without = model([{k: v for k, v in batch[0].items() if k != "instances"}])[0]["instances"]
    assert torch.equal(with_annotations.scores, without.scores)
    bare = model([{"image": batch[0]["image"]}])[0]["instances"]
    assert bare.image_size == (96, 128)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.BLENDMASK.MERGING", "yolact"],
        ["MODEL.BLENDMASK.MERGING", "fcis", "MODEL.BASIS_MODULE.NUM_BASES", 9],
        ["MODEL.BLENDMASK.BOTTOM_INTERP", "nearest"],
        ["MODEL.BLENDMASK.ATTN_SIZE", 1, "MODEL.BASIS_MODULE.NUM_BASES", 1],
        ["MODEL.BLENDMASK.ATTN_SIZE", 14, "MODEL.BASIS_MODULE.NUM_BASES", 8, "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 56],
        ["MODEL.BLENDMASK.POOLER_TYPE", "ROIAlign", "MODEL.BLENDMASK.POOLER_SAMPLING_RATIO", 2],
        ["MODEL.BASIS_MODULE.NAME", "DeepLabV3Plus", "MODEL.BASIS_MODULE.IN_FEATURES", ["p3", "p5"]],
        ["MODEL.BASIS_MODULE.NAME", "DeepLabV3Plus", "MODEL.BASIS_MODULE.IN_FEATURES", ["res3", "res5"]],
        ["MODEL.FCOS.NORM", "BN"],
        ["MODEL.FCOS.NORM", "none", "MODEL.FCOS.USE_DEFORMABLE", True],
        ["MODEL.FCOS.CENTER_SAMPLE", False],
        ["MODEL.FCOS.NUM_SHARE_CONVS", 2, "MODEL.FCOS.NUM_CLS_CONVS", 0, "MODEL.FCOS.NUM_BOX_CONVS", 0],
        ["MODEL.FCOS.NMS_TH", 0.0, "MODEL.FCOS.POST_NMS_TOPK_TEST", 0],
    ],
)
def test_variants_train_and_infer(opts):
    model = tiny_model("BlendMask", *opts)
    losses = model(random_batch([2, 0]))
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    model.proposal_generator.head.class_logits.bias.data.fill_(0.0)
    (output,) = model.eval()(random_batch([1]))
    assert len(output["instances"]) > 0
    assert set(output["instances"].get_fields()) == FIELDS


def test_fcis_reads_one_base_a_cell():
    model = tiny_model("BlendMask", "MODEL.BLENDMASK.MERGING", "fcis", "MODEL.BASIS_MODULE.NUM_BASES", 4)
    bases = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 32, 32)
    logits = model.blender(bases, torch.tensor([[8.0, 8.0, 100.0, 100.0]]), torch.tensor([0]), None)[0]
    assert [logits[3, 3], logits[3, 20], logits[20, 3], logits[20, 20]] == [0, 1, 2, 3]


def test_wrong_values_name_the_key():
    with pytest.raises(ValueError, match=r"BLENDMASK\.MERGING"):
        tiny_model("BlendMask", "MODEL.BLENDMASK.MERGING", "sum")
    with pytest.raises(ValueError, match="NUM_BASES"):
        tiny_model("BlendMask", "MODEL.BLENDMASK.MERGING", "fcis", "MODEL.BASIS_MODULE.NUM_BASES", 5)
    with pytest.raises(ValueError, match=r"BASIS_MODULE\.IN_FEATURES"):
        tiny_model("BlendMask", "MODEL.BASIS_MODULE.IN_FEATURES", ["p3", "p9"])


def test_autocast_losses_are_finite_float32():
    model = tiny_model("BlendMask")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(random_batch([2, 1]))
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("opts", [[], ["MODEL.BLENDMASK.MERGING", "fcis"], ["MODEL.BLENDMASK.MERGING", "yolact"]])
def test_explain_makes_pictures(opts):
    model = tiny_model("BlendMask", *opts)
    model.proposal_generator.head.class_logits.bias.data.fill_(0.0)
    for panels in model.eval().explain(random_batch([1, 0]), max_instances=2):
        titles = [title for title, _ in panels]
        assert titles[:4] == [f"basis {k}" for k in range(4)]
        assert len(titles) == 4 + (2 if "fcis" in opts else 4)
        for _, picture in panels:
            assert picture.dtype.name == "uint8"
            assert picture.ndim == 3
            assert picture.std() > 0
