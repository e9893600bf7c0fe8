"""What helps SparseInst to learn from little data: norms, the tiled start, pilots, the loss of the maps."""

import copy
import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.nn import sigmoid_focal_loss

from instseg_d2.config import check_config, load_config
from instseg_d2.errors import ConfigError
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.modeling.sparseinst.criterion import SparseInstCriterion
from instseg_d2.modeling.sparseinst.decoder import InstanceBranch
from instseg_d2.modeling.sparseinst.pilots import pilot_maps
from instseg_d2.modeling.sparseinst.targets import shares_of_cells
from instseg_d2.modeling.sparseinst.tiles import places, start_with_tiles
from tests.scripts import ROOT
from tests.tiny import random_batch, random_instances, tiny_model

KEY = "MODEL.SPARSE_INST."
NORMS = [KEY + "ENCODER.NORM", "BN", KEY + "DECODER.NORM", "BN"]
SHARES = ("loss_ce", "loss_mask", "loss_dice", "loss_objectness")


def test_places_fill_the_image_evenly():
    assert places(4).tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    assert places(1).tolist() == [[0, 0]]
    for count in (2, 7, 40, 100, 401):
        found = places(count)
        assert found.shape == (count, 2)
        assert found.abs().max() < 1
        distances = torch.cdist(found, found) + 9 * torch.eye(count)
        assert distances.min() > 0.6 * 2 / math.sqrt(count)


@pytest.mark.parametrize(("norm", "groups"), [("", 0), ("BN", 0), ("BN", 2)])
def test_maps_start_as_spots_at_their_places(norm, groups):
    """Whatever the features are: with a norm the coordinates pass unchanged on an image that fills the canvas."""
    torch.manual_seed(0)
    branch = InstanceBranch(10, 32, 3, 9, 3, 8, groups=groups, norm=norm).train()
    start_with_tiles(branch)
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, 31), torch.linspace(-1, 1, 41), indexing="ij")
    x = torch.cat([torch.stack([xs, ys]).expand(2, -1, -1, -1), torch.randn(2, 8, 31, 41)], dim=1)
    maps = branch(x)[3].view(2, -1, 31, 41)[:, :9]
    centre = torch.stack([(maps * xs).sum((2, 3)), (maps * ys).sum((2, 3))], dim=2)
    assert (centre - places(9)).abs().max() < 0.12
    spread = ((maps * (xs**2 + ys**2)).sum((2, 3)) - (centre**2).sum(2)).sqrt()
    assert spread.max() < 0.6  # of an even map: 0.84


def test_too_few_channels_for_the_coordinates():
    with pytest.raises(ValueError, match="needs 12 channels in a group; there are 8"):
        start_with_tiles(InstanceBranch(10, 32, 1, 9, 3, 8, groups=4))


def test_norms_vanish_at_inference():
    """The optimised model has none; with its weights a model without norms detects the same."""
    torch.manual_seed(0)
    model = tiny_model("SparseInst", *NORMS)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.2)
    fast = optimize_for_inference(model)
    decoder = fast.decoder
    names = [name for name, _ in decoder.named_parameters()]
    assert not [name for name in names if "norm" in name]
    without = tiny_model("SparseInst").eval()
    without.decoder.load_state_dict(
        {k: v for k, v in decoder.state_dict().items() if k in without.decoder.state_dict()}
    )
    x = torch.randn(1, model.encoder.fusion.out_channels, 8, 8)
    expected, found = model.eval().decoder(x), without.decoder(x)
    for name in ("class_logits", "mask_logits", "objectness_logits"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    maps = zip(model.encoder.in_features, model.encoder.laterals, (16, 8, 4))
    features = {name: torch.randn(1, conv.in_channels, side, side) for name, conv, side in maps}
    torch.testing.assert_close(fast.encoder(features), model.encoder(features), rtol=1e-4, atol=1e-4)


def test_pilots_lie_in_their_objects_or_outside_all():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    truth = [random_instances(count, 64, 64, 3, generator) for count in (3, 0, 1)]
    maps, objects = pilot_maps(truth, (64, 64), (16, 16), 4)
    assert maps.shape == (3, 4 * 3 + 2 * 3, 256)
    assert objects[0].tolist() == [0, 1, 2] * 4 + [-1] * 6
    assert objects[1].tolist() == [-1] * 2 + [-2] * 16
    assert objects[2].tolist() == [0] * 4 + [-1] * 2 + [-2] * 12
    assert torch.allclose(maps[objects > -2].sum(1), torch.ones(18 + 2 + 6))
    assert not maps[objects == -2].any()
    cells = (torch.arange(16) + 0.5) * 4
    for image, number in ((objects >= 0).nonzero()).tolist():
        x1, y1, x2, y2 = truth[image].gt_boxes.tensor[objects[image, number]].tolist()
        spot = maps[image, number].view(16, 16)
        x, y = (spot.sum(0) * cells).sum(), (spot.sum(1) * cells).sum()
        assert abs(x - (x1 + x2) / 2) < 0.35 * (x2 - x1) + 4
        assert abs(y - (y1 + y2) / 2) < 0.35 * (y2 - y1) + 4


class Recorded(SparseInstCriterion):
    def match(self, *args):
        self.matches = super().match(*args)
        return self.matches


def test_losses_of_maps_and_pilots_by_a_slow_transcription(monkeypatch):
    from instseg_d2.modeling.sparseinst import criterion as module

    model = (
        tiny_model("SparseInst", KEY + "DECODER.NAME", "GroupIAMDecoder", KEY + "DECODER.GROUPS", 2).double().train()
    )
    generator = torch.Generator().manual_seed(3)
    truth = [random_instances(count, 64, 64, 3, generator) for count in (2, 0, 1)]
    kept = []
    monkeypatch.setattr(
        module,
        "pilot_maps",
        lambda *args: kept.append(pilot_maps(*args)) or kept[-1]._replace(maps=kept[-1].maps.double()),
    )
    weights = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 3.0, "loss_objectness": 1.5, "loss_map": 0.7}
    criterion = Recorded(alpha=0.8, beta=0.2, weights=weights, items=("labels", "masks"), pilots=2)
    outputs = model.decoder(torch.randn(3, model.encoder.fusion.out_channels, 8, 8, generator=generator).double())
    losses = criterion(outputs, truth, (64, 64), model.decoder)

    full = []  # the share of each cell of 8 x 8 pixels, pixel by pixel
    for instances in truth:
        full.append(torch.zeros(len(instances), 8, 8))
        for number, y, x in instances.gt_masks.tensor.nonzero().tolist():
            full[-1][number, y // 8, x // 8] += 1 / 64
    shares = [
        float((outputs["activation_maps"][i, slot, 0] * full[i][j]).sum())
        for i, (slots, columns) in enumerate(criterion.matches)
        for slot, j in zip(slots.tolist(), columns.tolist())
    ]
    expected = 0.7 * sum(-math.log(share + 1e-3) for share in shares) / 3
    assert float(losses["loss_map"]) == pytest.approx(expected, rel=1e-5)

    branch, (maps, objects) = model.decoder.instance_branch, kept[0]
    sums = dict.fromkeys(SHARES, 0.0)
    for i, (features, mask_features) in enumerate(zip(outputs["instance_features"], outputs["mask_features"])):
        for spot, number in zip(maps[i].double(), objects[i].tolist()):
            if number == -2:
                continue
            vector = (features.flatten(1) * spot).sum(1)
            vector = branch.fc(vector.repeat(2)).relu()  # both groups have the same map
            label = torch.zeros(3, dtype=torch.float64)
            if number >= 0:
                label[truth[i].gt_classes[number]] = 1
            sums["loss_ce"] += float(sigmoid_focal_loss(branch.class_logits(vector), label, 0.25, 2.0, reduction="sum"))
            if number < 0:
                continue
            mask = torch.einsum("e,ehw->hw", branch.mask_kernel(vector), mask_features)[None, None]
            mask = torch.nn.functional.interpolate(mask, scale_factor=2, mode="bilinear")[0, 0].float()
            target = truth[i].gt_masks.tensor[number][None, None].float()
            target = torch.nn.functional.interpolate(target, mask.shape, mode="bilinear")[0, 0]
            p = mask.sigmoid()
            sums["loss_mask"] += float(torch.nn.functional.binary_cross_entropy(p, target))
            sums["loss_dice"] += float(1 - 2 * (p * target).sum() / (p.square().sum() + target.square().sum() + 1e-4))
            both, either = ((p >= 0.4) & (target > 0.5)).sum(), ((p >= 0.4) | (target > 0.5)).sum()
            chance = branch.objectness(vector)[0].sigmoid()
            iou = float(both / (either + 1e-6))
            sums["loss_objectness"] -= float(iou * chance.log() + (1 - iou) * (1 - chance).log())
    for name, total in sums.items():
        found = float(losses[name.replace("loss", "loss_pilot")])
        assert found == pytest.approx(weights[name] * total / 6, rel=1e-4), name  # 3 objects, 2 spots each


def test_matching_prefers_slots_near_the_object():
    """Four equal slots; each object in another corner. Without places, any matching is as good."""
    weights = dict.fromkeys(SHARES, 1.0)
    criterion = SparseInstCriterion(alpha=0.8, beta=0.2, weights=weights, items=("labels",), sigma=1.0)
    target = torch.zeros(3, 8, 8)
    for number, (y, x) in enumerate([(6, 6), (0, 6), (6, 0)]):
        target[number, y : y + 2, x : x + 2] = 1
    logits = torch.zeros(1, 4, 2), torch.zeros(1, 4, 8, 8)
    ((slots, objects),) = criterion.match(*logits, [torch.zeros(3, dtype=torch.long)], [target])
    assert dict(zip(slots.tolist(), objects.tolist())) == {1: 1, 2: 2, 3: 0}


def test_the_auxiliary_head_is_only_for_training():
    model = tiny_model("SparseInst", "MODEL.AUXILIARY.WEIGHT", 2.0).train()
    batch = random_batch([2, 1])
    losses = model(batch)
    assert {"loss_aux_cls", "loss_aux_loc", "loss_aux_ctr"} <= losses.keys()
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.training_only.parameters())
    single = copy.deepcopy(model)
    single.training_only["auxiliary"].weight = 1.0
    single.load_state_dict(model.state_dict())
    halves = single(batch)
    assert float(losses["loss_aux_loc"]) == pytest.approx(2 * float(halves["loss_aux_loc"]), rel=1e-5)
    fast = optimize_for_inference(model)
    assert not list(fast.training_only.parameters())


def test_a_batch_without_objects():
    opts = ["MODEL.AUXILIARY.WEIGHT", 1.0, KEY + "LOSS.PILOTS", 2, KEY + "LOSS.MAP_WEIGHT", 1.0]
    model = tiny_model("SparseInst", *opts).train()
    batch = random_batch([2, 1])
    for sample in batch:
        sample["instances"] = sample["instances"][:0]
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert isinstance(batch[0]["instances"], Instances)


def test_pilots_and_maps_see_thin_objects():
    """A bar between the pixels that a bilinear resizing to stride 8 reads."""
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 13:19, 0:40] = True  # three rows each of the cells' rows 1 and 2
    bar = Instances((64, 64), gt_masks=BitMasks(masks), gt_boxes=Boxes(torch.tensor([[0.0, 13, 40, 19]])))
    shares = shares_of_cells(bar, (64, 64), (8, 8))
    assert shares[0, 1:3, :5].tolist() == [[3 / 8] * 5] * 2
    assert float(shares.sum()) == 10 * 3 / 8
    torch.manual_seed(0)
    maps, objects = pilot_maps([bar], (64, 64), (8, 8), 1)
    assert not maps[objects == -1].view(-1, 8, 8)[:, 1:3, :5].any()


def test_crowded_images_have_no_more_pilots():
    generator = torch.Generator().manual_seed(0)
    maps, objects = pilot_maps([random_instances(150, 64, 64, 3, generator)], (64, 64), (8, 8), 4)
    assert maps.shape == (1, 400, 64)
    assert len(objects[objects >= 0].unique()) > 75


def test_items_of_the_losses_hold_for_pilots():
    model = tiny_model("SparseInst", KEY + "LOSS.PILOTS", 1, KEY + "LOSS.ITEMS", ("labels",)).train()
    assert model(random_batch([2, 1])).keys() == {"loss_ce", "loss_pilot_ce"}


def test_weights_of_other_slots_start_with_tiles_again():
    """Otherwise the maps would read coordinates from channels that carry none."""
    opts = [KEY + "DECODER.START", "tiles", KEY + "DECODER.INST.DIM", 32, KEY + "DECODER.NAME", "BaseIAMDecoder"]
    branch = tiny_model("SparseInst", *opts).decoder.instance_branch
    source = copy.deepcopy(branch)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    fresh = copy.deepcopy(branch)
    weights = {name: x for name, x in source.state_dict().items() if "iam_conv" not in name}
    branch.load_state_dict(weights, strict=False)
    assert torch.equal(branch.convs[0].weight[:12], fresh.convs[0].weight[:12])
    assert torch.equal(branch.convs[0].weight[12:], source.convs[0].weight[12:])


def test_tiles_need_channels():
    cfg = load_config(str(ROOT / "configs/quick/sparseinst_shapes.yaml"), [KEY + "DECODER.INST.DIM", 32])
    with pytest.raises(
        ConfigError, match=r"needs 12 channels in a group, for the coordinates; INST\.DIM / GROUPS is 8"
    ):
        check_config(cfg)


def test_weights_without_places_are_told(caplog):
    """Of as many slots, but not from a tiled start. Those from one are quiet, also after some training."""
    opts = [KEY + "DECODER.INST.DIM", 32, KEY + "DECODER.NAME", "BaseIAMDecoder", KEY + "DECODER.START"]
    branch = tiny_model("SparseInst", *opts, "tiles", KEY + "MATCHER.SIGMA", 1.0).decoder.instance_branch
    weights = {name: x + 0.2 * torch.randn_like(x) for name, x in branch.state_dict().items()}
    branch.load_state_dict(weights)
    assert "no places" not in caplog.text
    branch.load_state_dict(tiny_model("SparseInst", *opts, "random").decoder.instance_branch.state_dict())
    assert "no places" in caplog.text
