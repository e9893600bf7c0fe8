"""Two gloo processes with one image each give the gradients of one process with both."""

import argparse

import pytest
import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm

from instseg_d2.engine import launch
from instseg_d2.engine.distributed import sync_batchnorm_on_cpu
from tests.tiny import random_batch, tiny_model

# Norms without batch statistics: those differ between one process and two by definition.
OPTS = [
    "MODEL.RESNETS.NORM", "FrozenBN",
    "MODEL.BASIS_MODULE.NORM", "GN",
    "MODEL.BASIS_MODULE.LOSS_ON", False,
]  # fmt: skip


def _gradients_of_one_rank(args):
    torch.set_num_threads(1)
    model = create_ddp_model(tiny_model(*OPTS), broadcast_buffers=False, device_ids=None)
    batch = random_batch(args.counts, 64, 96)
    losses = model([batch[comm.get_rank()]])
    sum(losses.values()).backward()
    if comm.is_main_process():
        torch.save({name: p.grad for name, p in model.module.named_parameters()}, args.path)


@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 0)])
def test_gradients_equal_one_process(counts, tmp_path):
    processes = {"num_gpus": 0, "num_processes": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    args = argparse.Namespace(counts=counts, path=tmp_path / "gradients.pth", **processes)
    launch(_gradients_of_one_rank, args)
    found = torch.load(args.path)
    model = tiny_model(*OPTS)
    sum(model(random_batch(counts, 64, 96)).values()).backward()
    # The normalisers are means over the processes but at least 1: with no object at all they do not halve.
    factor = 1.0 if any(counts) else 0.5
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                found[name], parameter.grad * factor, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


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
