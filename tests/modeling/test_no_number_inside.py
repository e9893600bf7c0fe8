"""
A location, window, query or slot whose prediction is not a number costs the network no other detection.

The oracle: the same network where its class score is as low as can be.
"""

import dataclasses
import math

import pytest
import torch

from tests.tiny import random_batch, tiny_model


def assert_same(found, expected):
    assert len(found) == len(expected) > 5
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    if expected.has("pred_masks"):
        assert torch.equal(found.pred_masks, expected.pred_masks)


def compared(monkeypatch, model, owner, name, spoilt, lowered):
    """Detections where ``owner.name(...)`` is changed by either function, and unchanged."""
    original, batch, results = getattr(owner, name), random_batch([2], 64, 96), []
    for change in (spoilt, lowered, lambda x: x):
        monkeypatch.setattr(owner, name, lambda *args, change=change: change(original(*args)))
        results.append(model.eval().detect(batch)[0]["instances"])
    found, expected, sound = results
    assert_same(found, expected)
    assert not torch.equal(expected.scores, sound.scores)


@pytest.mark.parametrize(
    ("field", "value"),
    [("class_logits", math.nan), ("quality_logits", math.nan), ("ltrb", math.nan), ("ltrb", math.inf)],
)
@pytest.mark.parametrize("method", ["BlendMask", "FCOSDetector", "EmbedMask"])
def test_a_location_of_fcos(monkeypatch, method, field, value):
    """The location of the best detection; 20 candidates per level, so that one too many would show."""
    model = tiny_model(method, finding=True)
    fcos = model.proposal_generator
    fcos.limits_test = dataclasses.replace(fcos.limits_test, pre_nms_topk=20)

    def changed(outputs, field, value):
        row = (outputs.class_logits.sigmoid() * outputs.quality_logits.sigmoid()[:, None]).amax(1).argmax()
        values = getattr(outputs, field).clone()
        values[row] = value
        return dataclasses.replace(outputs, **{field: values})

    lowered = lambda outputs: changed(outputs, "class_logits", -math.inf)  # noqa: E731
    compared(monkeypatch, model, fcos, "outputs", lambda x: changed(x, field, value), lowered)


@pytest.mark.parametrize("score", ["objectness", "product"])
def test_a_window_of_instancefcn(monkeypatch, score):
    """The window with the highest objectness at each scale, of few candidates."""
    opts = ["MODEL.INSTANCE_FCN.SCORE", score, "MODEL.INSTANCE_FCN.TOP_WINDOWS", 12]
    model = tiny_model("InstanceFCN", *opts, finding=True)

    def changed(outputs, value):
        score_maps, objectness = outputs
        objectness = objectness.clone()
        best = objectness.view(-1).argmax()
        objectness.view(-1)[best] = value
        return score_maps, objectness

    spoilt, lowered = (lambda x, value=value: changed(x, value) for value in (math.nan, -math.inf))
    compared(monkeypatch, model, model.proposal_generator, "outputs", spoilt, lowered)


def test_a_query_of_istr(monkeypatch):
    """With all its classes it would fill the list of the best detections."""
    model = tiny_model("ISTR", "TEST.DETECTIONS_PER_IMAGE", 40, finding=True)

    def changed(logits, value):
        logits = logits.clone()
        logits[0, logits[0].amax(1).argmax()] = value
        return logits

    spoilt, lowered = (lambda x, value=value: changed(x, value) for value in (math.nan, -math.inf))
    compared(monkeypatch, model, model.roi_heads.heads[-1], "classify", spoilt, lowered)


@pytest.mark.parametrize("field", ["class_logits", "objectness_logits", "mask_logits"])
def test_a_slot_of_sparseinst(monkeypatch, field):
    model = tiny_model("SparseInst", "MODEL.SPARSE_INST.MAX_DETECTIONS", 8, finding=True)
    sound = model.eval().infer(model.preprocess(random_batch([2], 64, 96)))[0]["instances"]
    slot = int(sound.slots[sound.scores.argmax()])

    def changed(outputs, field, value):
        values = outputs[field].clone()
        values[0, slot] = value
        return {**outputs, field: values}

    lowered = lambda outputs: changed(outputs, "class_logits", -math.inf)  # noqa: E731
    compared(monkeypatch, model, model, "outputs", lambda x: changed(x, field, math.nan), lowered)


@pytest.mark.parametrize("field", ["scores", "pred_boxes"])
@pytest.mark.parametrize("heads", ["ISTRHeads", "SparseInstHeads"])
def test_a_detection_in_detectron2s_model(monkeypatch, heads, field):
    """Its postprocessing refuses boxes that are not numbers."""
    opts = ["MODEL.ROI_HEADS.NAME", heads, "MODEL.RESNETS.NORM", "BN", "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT"]
    model = tiny_model("MaskRCNN", *opts, "MODEL.PROPOSAL_GENERATOR.NAME", "NoProposals").eval()
    for name, module in model.roi_heads.named_modules():
        if name.endswith(("class_logits", "objectness")):  # untrained, they are sure that there is nothing
            torch.nn.init.normal_(module.weight, std=1e-3)
            torch.nn.init.zeros_(module.bias)
    batch, infer, results = random_batch([2], 64, 96), model.roi_heads.infer, []

    def spoilt(instances):
        instances.scores[2] = math.nan if field == "scores" else instances.scores[2]
        instances.pred_boxes.tensor[2, 0] = math.nan if field == "pred_boxes" else 0
        return instances

    for change in (spoilt, lambda x: x[[i for i in range(len(x)) if i != 2]]):
        monkeypatch.setattr(model.roi_heads, "infer", lambda *args, change=change: [change(x) for x in infer(*args)])
        with torch.no_grad():
            results.append(model(batch)[0]["instances"])
    assert_same(*results)
