"""Two gloo processes with one image each give the gradients of one process with both."""

import argparse

import pytest
import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from instseg_d2.checkpoint import InstSegCheckpointer
from instseg_d2.engine import launch
from instseg_d2.engine.batch_norms import sync_batchnorm_on_cpu
from tests.processes import forking
from tests.tiny import METHODS, random_batch, tiny_model

# Norms without batch statistics: those differ between one process and two by definition. All windows, no sample.
OPTS = [
    "MODEL.RESNETS.NORM", "FrozenBN",
    "MODEL.FCOS.NORM", "none",
    "MODEL.EMBED_MASK.NORM", "GN",
    "MODEL.BASIS_MODULE.NORM", "GN",
    "MODEL.BASIS_MODULE.LOSS_ON", False,
    "MODEL.INSTANCE_FCN.WINDOWS_PER_IMAGE", 100000,
    "MODEL.INSTANCE_FCN.POSITIVE_FRACTION", 1.0,
]  # fmt: skip
SIZE = (128, 192)  # two cells of the coarsest map: a smaller image alone would be padded further than two together


def _gradients(model, batch):
    with EventStorage():
        sum(model(batch).values()).backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}


def _detections(model, counts=(2, 0)):
    with torch.no_grad():
        outputs = model.eval()([{"image": x["image"]} for x in random_batch(counts, *SIZE)])
    return [x["instances"].get_fields() for x in outputs]


CASES = [(3, 2), (0, 0), (3, 0)]  # objects of the two images


def _gradients_of_one_rank(args):
    torch.set_num_threads(1)
    for method in METHODS:
        _train(method, args.folder / method)


def _train(method, folder):
    folder.mkdir(exist_ok=True)
    for counts in CASES:  # a process that has no objects must neither crash nor hang
        model = create_ddp_model(tiny_model(method, *OPTS, finding=True), broadcast_buffers=False, device_ids=None)
        found = _gradients(model, [random_batch(counts, *SIZE)[comm.get_rank()]])
        if comm.is_main_process():
            torch.save(found, folder / f"{counts}.pth")
    torch.optim.SGD(model.parameters(), 1e-3).step()
    if comm.is_main_process():
        InstSegCheckpointer(model, str(folder)).save("trained")
        wrapped = {"model": model.state_dict()}  # as a plain torch.save of what DDP wraps writes it
        torch.save(wrapped, folder / "wrapped.pth")
        found = [(x["scores"], x["pred_boxes"].tensor, x["pred_masks"]) for x in _detections(model.module)]
        torch.save(found, folder / "detections.pth")


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """The folder of what two processes computed for all methods."""
    folder = tmp_path_factory.mktemp("two")
    processes = {"num_gpus": 0, "num_processes": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    with forking("forkserver"):
        launch(_gradients_of_one_rank, argparse.Namespace(folder=folder, **processes))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_one_process(method, of_two_processes):
    folder = of_two_processes / method
    for counts in CASES:
        found = torch.load(folder / f"{counts}.pth")
        expected = _gradients(tiny_model(method, *OPTS, finding=True), random_batch(counts, *SIZE))
        assert found.keys() == expected.keys()
        if not any(counts):  # the normalisers are means over the processes, but at least 1
            assert all(torch.isfinite(value).all() for value in found.values())
            continue
        for name, value in expected.items():
            message = f"{counts} {name}: {{}}".format
            tolerance = 2e-4 * float(value.abs().max()) + 1e-7
            torch.testing.assert_close(found[name], value, rtol=2e-3, atol=tolerance, msg=message)
    # What two processes trained looks at images in one that is none of theirs, and in DDP's wrapper it is the same.
    trained = torch.load(folder / "detections.pth")
    for name in ("trained", "wrapped"):
        model = tiny_model(method, *OPTS, seed=1, finding=True)
        InstSegCheckpointer(model, for_test=True).load(str(folder / f"{name}.pth"))
        for fields, expected in zip(_detections(model), trained):
            assert len(fields["scores"]) > 0
            found = (fields["scores"], fields["pred_boxes"].tensor, fields["pred_masks"])
            torch.testing.assert_close(found, tuple(expected))


def test_sync_batchnorm_becomes_one_that_runs_on_the_cpu():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.SyncBatchNorm(4), torch.nn.Sequential(torch.nn.SyncBatchNorm(4))
    )
    model[1].weight.data.fill_(2.0)
    model[1].running_mean.fill_(3.0)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    sync_batchnorm_on_cpu(model)
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values()))
    assert list(model.state_dict()) == list(state)
