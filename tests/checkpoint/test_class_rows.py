"""A model of some classes starts one of others."""

import copy
import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from instseg_d2.checkpoint import InstSegCheckpointer
from instseg_d2.checkpoint.class_rows import carry_classes
from instseg_d2.errors import CheckpointError
from instseg_d2.modeling.build import build
from tests.tiny import random_batch, tiny_config

CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
RETINA = [
    "MODEL.META_ARCHITECTURE", "RetinaNet",
    "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 24], [32, 48], [64, 96], [128, 192], [256, 384]],
    "MODEL.RETINANET.NUM_CONVS", 1,
]  # fmt: skip
MODELS = {
    "FCOSDetector": [],
    "BlendMask": [],
    "EmbedMask": [],
    "ISTR": ["MODEL.ISTR.NUM_HEADS", 2, "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT"],
    "SparseInst": [],
    "MaskRCNN": [],
    "cascade": CASCADE,
    "retina": RETINA,
    "InstanceFCN": [],
}


def built(name, num_classes, device="cpu"):
    method = "MaskRCNN" if name in ("cascade", "retina") else name
    cfg = tiny_config(method, *MODELS[name], "MODEL.DEVICE", device, num_classes=num_classes)
    with torch.device(device):
        return build(cfg)


def saved(model, folder, names, **other):
    InstSegCheckpointer(model, str(folder), metadata={"class_names": names, **other}).save("w")
    return str(folder / "w.pth")


def load(model, path, names, **kwargs):
    InstSegCheckpointer(model, metadata={"class_names": names}, **kwargs).load(path)


def losses(model, batch):
    torch.manual_seed(0)
    with EventStorage():
        return {name: float(loss.detach()) for name, loss in model.train()(copy.deepcopy(batch)).items()}


@pytest.mark.parametrize("name", ["BlendMask", "MaskRCNN", "retina"])  # all orders of rows
def test_the_order_of_the_classes_does_not_matter(tmp_path, name):
    """The same objects cost the same after loading, so every row belongs to the class of its name."""
    old, new = ["cat", "dog", "cow"], ["cow", "cat", "dog"]
    torch.manual_seed(0)
    source, target = built(name, 3), built(name, 3)
    for key, parameter in source.named_parameters():
        if "class_logits" in key or "cls_score" in key or "predictor" in key:
            nn.init.normal_(parameter, std=0.1)  # also biases, so that no two rows are alike
    batch = random_batch([3, 2], 64, 64)
    expected = losses(source, batch)
    load(target, saved(source, tmp_path, old), new)
    for sample in batch:
        classes = sample["instances"].gt_classes
        sample["instances"].gt_classes = torch.tensor([new.index(old[i]) for i in classes])
    assert losses(target, batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_that_depends_on_the_classes_is_known(name):
    few, more = (built(name, count, "meta").state_dict() for count in (3, 5))
    dependent = {key for key, value in few.items() if value.shape != more[key].shape}
    state = {key: torch.zeros(value.shape) for key, value in few.items()}
    fresh = {key: torch.ones(value.shape) for key, value in more.items()}
    carry_classes({"model": state, "class_names": list("abc")}, fresh, {"class_names": list("abcde")})
    assert {key for key, value in state.items() if value.any()} == dependent


def heads(classes, stuff=2):
    """Layers of each kind, two rows for each of RetinaNet's classes; each weight is its row number."""
    box = nn.ModuleDict({"cls_score": nn.Linear(1, classes + 1), "bbox_pred": nn.Linear(1, 4 * classes)})
    model = nn.ModuleDict(
        {
            "box_predictor": box,
            "head": nn.ModuleDict({"cls_score": nn.Conv2d(1, 2 * classes, 1)}),
            "basis_module": nn.ModuleDict(
                {"semantic_head": nn.Sequential(*[nn.Identity()] * 2, nn.Linear(1, classes + 1))}
            ),
            "sem_seg_head": nn.ModuleDict({"predictor": nn.Linear(1, stuff)}),
            "body": nn.Linear(1, 3),
        }
    )
    for parameter in model.parameters():
        rows = torch.arange(len(parameter), dtype=torch.float)
        parameter.data = rows.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter).clone()
    return model


def test_rows_by_name(tmp_path, caplog):
    """New weights are 100 + row: a, which keeps its rows, and d, which starts fresh; the background is kept."""
    source, target = heads(3), heads(2, stuff=3)
    path = saved(source, tmp_path, ["b", "a", "c"], stuff_names=["sky", "sea"])
    for parameter in target.parameters():
        parameter.data += 100
    with caplog.at_level(logging.INFO):
        InstSegCheckpointer(target, metadata={"class_names": ["d", "a"], "stuff_names": ["sea", "ice", "sky"]}).load(
            path
        )
    found = {key: value.flatten().tolist() for key, value in target.state_dict().items() if key.endswith("bias")}
    assert found == {
        "box_predictor.cls_score.bias": [100, 1, 3],
        "box_predictor.bbox_pred.bias": [100, 101, 102, 103, 4, 5, 6, 7],
        "head.cls_score.bias": [100, 1, 102, 4],
        "basis_module.semantic_head.2.bias": [0, 101, 2],
        "sem_seg_head.predictor.bias": [1, 101, 0],
        "body.bias": [0, 1, 2],
    }
    assert "Of its 3 classes, a is carried over; d starts fresh." in caplog.text
    assert "Of its 2 classes, sea, sky are carried over; ice starts fresh." in caplog.text


def test_files_without_names(tmp_path, caplog):
    """With 80 classes they are COCO's; others are not guessed. A model of as many classes takes them as they are."""
    for count, names, first in ((80, ["dog", "x"], 16.0), (7, ["dog", "x"], 100.0), (80, ["x"] * 80, 0.0)):
        source, target = (
            nn.ModuleDict({"class_logits": nn.Linear(1, n), "body": nn.Linear(1, 1)}) for n in (count, len(names))
        )
        source["class_logits"].bias.data = torch.arange(float(count))
        target["class_logits"].bias.data.fill_(100)
        torch.save(source.state_dict(), tmp_path / "w.pth")
        caplog.clear()
        with caplog.at_level(logging.INFO):
            load(target, str(tmp_path / "w.pth"), names)
        assert target["class_logits"].bias[0] == first
        assert ("has as many as COCO), dog is carried over; x starts fresh" in caplog.text) == (first == 16)


def test_only_training_may_start_from_other_classes(tmp_path):
    path = saved(heads(3), tmp_path, ["b", "a", "c"])
    with pytest.raises(CheckpointError, match="do not have the model's shape"):
        load(heads(2), path, ["a", "d"], for_test=True)
    same_count = heads(3)
    load(same_count, path, ["a", "b", "c"], for_test=True)
    assert torch.equal(same_count["box_predictor"]["cls_score"].bias, torch.arange(4.0))
