"""
Every method on a device that is not the CPU (see `tests/pretend_device.py`): losses, gradients and detections of the
CPU, no tensor on the CPU by mistake, and no more waits for the device than are known.
"""

import copy

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from instseg_d2.checkpoint import InstSegCheckpointer
from instseg_d2.engine import Trainer
from instseg_d2.inference import Predictor
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.ops import extension
from projects.benchmarks.stages import plain_model, plain_module
from tests.modeling.blendmask.test_panoptic import confident, panoptic_batch, panoptic_model
from tests.modeling.test_image_mask_head import ASSEMBLE, BLEND, CODES, EMBED, FCOS
from tests.modeling.test_proposal_free import ISTR, NO_PROPOSALS, PLAIN_RESNET, SPARSE
from tests.pretend_device import PretendDevice, PretendTensor
from tests.scripts import registered_shapes
from tests.tiny import random_batch, tiny_config, tiny_model

# Host reads of a training step, without that of its log, and of an image; projects/benchmarks.md says what they are.
READS = {
    "FCOSDetector": (1, 4),
    "BlendMask": (1, 4),
    "EmbedMask": (3, 6),
    "InstanceFCN": (0, 5),  # with two scales, one each
    "ISTR": (1, 2),
    "SparseInst": (1, 2),
}
VARIANTS = {"EmbedMask-v1": ("EmbedMask", "MODEL.EMBED_MASK.VERSION", "v1")}
HEADS = {
    "BlendMaskHead": BLEND,
    "EmbedMaskHead": EMBED,
    "AssembleMaskHead-FCOS": [*ASSEMBLE, *FCOS],
    "MaskEmbeddingHead": CODES,
    "ISTRHeads": [*ISTR, *NO_PROPOSALS],
    "SparseInstHeads": [*SPARSE, *PLAIN_RESNET],
}


@pytest.fixture(autouse=True)
def cpu_kernels(monkeypatch):
    """The operators take their CPU kernels here as they take the CUDA kernels on a GPU."""
    monkeypatch.setattr(extension, "serves", lambda device_type: extension.has_extension() is not None)


def small_batch():
    return random_batch([2, 0], 64, 96)


def training_step(model):
    """Losses and gradients."""
    torch.manual_seed(3)
    with EventStorage():
        losses = model.train()(small_batch())
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, **tolerance):
    assert isinstance(found, PretendTensor)
    torch.testing.assert_close(found.inner, expected.detach(), **tolerance)


def assert_same_detections(found, expected):
    assert len(found) == len(expected)
    assert found.get_fields().keys() == expected.get_fields().keys()
    assert_same(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    assert_same(found.pred_classes, expected.pred_classes)
    assert_same(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-2)
    if expected.has("pred_masks"):
        assert isinstance(found.pred_masks, PretendTensor)
        assert (found.pred_masks.inner != expected.pred_masks).float().mean() < 1e-3


@pytest.mark.parametrize("name", [*READS, *VARIANTS])
def test_method(name):
    method, *opts = VARIANTS.get(name, (name,))
    model = tiny_model(method, *opts, finding=True)
    twin, image = copy.deepcopy(model), small_batch()[:1]
    expected_step, expected = training_step(twin), twin.eval().detect(image)[0]["instances"]
    with PretendDevice() as device:
        model.to("pretend")
        with device.noting() as in_step:
            step = training_step(model)
        for own, others in zip(step, expected_step):
            assert own.keys() == others.keys()
            for key, value in others.items():  # attention sums in another order, and rounding grows on the way back
                assert_same(own[key], value, rtol=1e-4, atol=5e-3 * float(value.detach().abs().max()) + 1e-6)
        assert_same_detections(model.eval().detect(image)[0]["instances"], expected)
        with device.noting() as in_image:  # where some detections are dropped, too
            found = model.detect(image, score_threshold=float(expected.scores.median()))[0]["instances"]
        assert 0 < len(found) < len(expected)
        assert_same_detections(optimize_for_inference(model).detect(image)[0]["instances"], expected)
        assert not model.detect(image, masks="none")[0]["instances"].has("pred_masks")
        if hasattr(model, "explain"):
            assert model.explain(image, 2)[0]
    if name in READS:
        counts = len(in_step.reads), len(in_image.reads)
        assert counts == READS[name], "\n".join([*in_step.reads, "", *in_image.reads])
    # The host waits for the ground truth, before the network starts, and for what torchvision's NMS uploads.
    assert len(in_step.uploads) == 6
    assert all("detectron2/structures/instances.py" in x for x in in_step.uploads), "\n".join(in_step.uploads)
    assert all("torchvision/ops/boxes.py" in x for x in in_image.uploads), "\n".join(in_image.uploads)


@pytest.mark.parametrize("name", READS)
def test_twin_of_the_benchmark(name):
    model, batch = tiny_model(name, finding=True), random_batch([1], 64, 96)
    with PretendDevice():
        twin = plain_model(model.to("pretend").eval())
        assert isinstance(twin.detect(batch)[0]["instances"].scores, PretendTensor)
        losses = getattr(plain_module(model), "plain_losses", None)
        if losses is not None:
            images = model.train().preprocess(batch)
            assert isinstance(sum(losses(model, images, model.gt_instances(batch)).values()), PretendTensor)


@pytest.mark.parametrize("name", HEADS)
def test_head_in_detectron2s_detector(name):
    model = tiny_model("MaskRCNN", *HEADS[name])
    with PretendDevice(), torch.no_grad():
        model.to("pretend")
        with torch.enable_grad():
            losses, grads = training_step(model)
        assert all(x.isfinite().all() for x in (*losses.values(), *grads.values()))
        found = model.eval()(small_batch())[0]["instances"]
    assert isinstance(found.pred_masks, PretendTensor)


def test_panoptic():
    """Full-size masks, and run lengths as the evaluation wants them."""
    batch = panoptic_batch([2], 64, 96)
    model = confident(panoptic_model())
    expected = {masks: model.detect(batch, masks=masks)[0]["panoptic_seg"] for masks in ("full", "run_lengths")}
    with PretendDevice():
        model.to("pretend")
        for masks, (ids, segments) in expected.items():
            own_ids, own_segments = model.detect(batch, masks=masks)[0]["panoptic_seg"]
            assert len(own_segments) == len(segments) > 1
            assert (own_ids.inner != ids).float().mean() < 1e-3


class OnDevice(Trainer):
    @classmethod
    def build_model(cls, cfg):
        return super().build_model(cfg).to("pretend")

    def run_step(self):
        with PretendDevice.active[-1].noting() as self.noted:
            super().run_step()


def test_training(tmp_path):
    """Train, evaluate, resume and predict; a step reads the matching and its log."""
    with registered_shapes(tmp_path, pretend_shapes=1), PretendDevice():
        cfg = tiny_config(
            "SparseInst",
            "DATASETS.TRAIN", ("pretend_shapes",),
            "DATASETS.TEST", (),
            "DATALOADER.NUM_WORKERS", 0,
            "INPUT.MIN_SIZE_TRAIN", (64,),
            "INPUT.MIN_SIZE_TEST", 64,
            "SOLVER.MAX_ITER", 1,
            "SOLVER.STEPS", (),
            "SOLVER.IMS_PER_BATCH", 2,
            "SOLVER.OPTIMIZER", "MUON",
            "SOLVER.CLIP_GRADIENTS.ENABLED", True,
            "OUTPUT_DIR", str(tmp_path / "out"),
            num_classes=6,
        )  # fmt: skip
        for iterations, tested in ((1, ()), (2, ("pretend_shapes",))):
            cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = iterations, tested
            trainer = OnDevice(cfg)
            trainer.resume_or_load(resume=iterations == 2)
            trainer.train()
            assert trainer.start_iter == iterations - 1
            assert len(trainer.noted.reads) == READS["SparseInst"][0] + 1, "\n".join(trainer.noted.reads)
        assert {"bbox", "segm"} <= trainer.results.keys()
        predictor = Predictor.from_checkpoint(str(tmp_path / "out" / "model_final.pth"))
        predictor.model.to("pretend")
        assert predictor(np.zeros((60, 80, 3), np.uint8)).scores.device.type == "cpu"


def test_a_checkpoint_of_a_gpu(tmp_path, monkeypatch):
    """Its tensors say that they lie on "cuda:0"; they are read to the CPU, then copied to the model's device."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path, model = str(tmp_path / "model.pth"), tiny_model("SparseInst")
    torch.save({"model": model.state_dict()}, path)
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    with PretendDevice():
        InstSegCheckpointer(other.to("pretend")).load(path)
        for name, value in model.state_dict().items():
            assert_same(other.state_dict()[name], value)


def test_the_device_itself():
    host = torch.arange(6.0).view(2, 3)
    with PretendDevice() as device:
        x = host.to("pretend")
        assert x.device.type == "pretend"
        assert_same(x @ x.T + host.sum(), host @ host.T + 15)  # a number of the host may take part
        for mixed in (
            lambda: x + host,
            lambda: torch.cat([x, host]),
            lambda: x.clone().index_add_(0, x[0].long(), host),
        ):
            with pytest.raises(RuntimeError, match="mixes"):
                mixed()
        with pytest.raises(AssertionError, match="generator"):
            torch.rand(3, device="pretend", generator=torch.Generator())
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        for read in (
            lambda: x.sum().item(),
            lambda: x[x > 2],
            lambda: (x > 2).nonzero(),
            lambda: bool(x.any()),
            lambda: x.cpu(),
            lambda: x[0].tolist(),
            lambda: x[0].long().repeat_interleave(x[1].long()),
            lambda: x[0].unique(),
            lambda: host.copy_(x),
        ):
            with device.noting() as noted:
                read()
            assert len(noted.reads) == 1
        with device.noting() as noted:
            x[x > 2] = 0.0  # masked_fill, also on a GPU
            torch.tensor([1.0], device="pretend")
            torch.ones(2).to("pretend", non_blocking=True)
        assert (len(noted.reads), len(noted.uploads)) == (0, 1)
    with pytest.raises(RuntimeError, match="outside"):
        x + 1
