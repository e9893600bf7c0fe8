"""All parameter lists of the authors are covered; files of AdelaiDet and Detectron2; converting to safetensors."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from instseg_d2.checkpoint import InstSegCheckpointer, read_extra
from instseg_d2.checkpoint.authors import convert_state_dict
from instseg_d2.config import load_config
from instseg_d2.engine import Predictor
from tests.bright_spots import spots_image
from tests.checkpoint.converting import convert
from tests.checkpoint.test_authors import CONFIGS, LISTS, read_list
from tests.tiny import tiny_config, tiny_model


def lists_folder():
    folder = os.environ.get("INSTSEG_OFFICIAL_PARAMETERS")
    if not folder:
        pytest.skip("INSTSEG_OFFICIAL_PARAMETERS names no folder of parameter lists")
    return Path(folder)


def meta_model(config, *opts):
    with torch.device("meta"):
        return build_model(load_config(str(CONFIGS / config), ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", "", *opts]))


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}


def random_values(state, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}


def test_every_list_is_covered():
    tested = {*LISTS, "embedmask_v3_R50.txt"}  # the last by tests/modeling/embedmask/test_authors.py
    assert {path.name for path in lists_folder().glob("*.txt")} == tested


def test_a_whole_file_is_loaded(tmp_path, caplog):
    """A file with random weights of a list's shapes: its values arrive in the model."""
    caplog.set_level("INFO")
    official = random_values(read_list(lists_folder() / "sparseinst_pvt_b1.txt"))
    torch.save({"model": official}, tmp_path / "pvt_b1.pth")
    cfg = load_config(str(CONFIGS / LISTS["sparseinst_pvt_b1.txt"]), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = build_model(cfg)
    InstSegCheckpointer(model, for_test=True).load(str(tmp_path / "pvt_b1.pth"))
    (report,) = [r.getMessage() for r in caplog.records if "weights loaded" in r.getMessage()]
    assert report.endswith(f"{len(official)} of {len(official)} weights loaded.")
    loaded = model.state_dict()
    for name, value in convert_state_dict(official).items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("quality", ["ctrness", "centerness"])
def test_fcos_of_adelaidet(quality):
    """BlendMask's list without masks and with scales on the box distances, centerness under its old and new name."""
    parts = ("basis_module.", "top_layer.")
    blendmask = read_list(lists_folder() / "blendmask_R_50.txt")
    official = {k.replace("ctrness", quality): v for k, v in blendmask.items() if not k.startswith(parts)}
    official.update({f"proposal_generator.fcos_head.scales.{i}.scale": torch.zeros(1) for i in range(5)})
    assert shapes(convert_state_dict(official)) == shapes(meta_model("FCOS/R_50_1x.yaml").state_dict())


def test_backbone_of_detectron2(tmp_path):
    """The zoo's ImageNet files: names from the stem on, as NumPy arrays, matched by their endings."""
    model = tiny_model("BlendMask")
    bottom_up = random_values(model.backbone.bottom_up.state_dict())
    arrays = {name: value.numpy() for name, value in bottom_up.items()}
    data = {"model": {**arrays, "stem.fc.weight": arrays["stem.conv1.weight"]}, "__author__": "torchvision"}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps({**data, "matching_heuristics": True}))
    InstSegCheckpointer(model).load(str(tmp_path / "R-18.pkl"))
    for name, value in model.backbone.bottom_up.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, bottom_up[name]), name


def test_mask_rcnn_of_detectron2(tmp_path):
    """The zoo's trained models load by their own names."""
    opts = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 32]
    opts += ["MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    model = build_model(load_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", opts))
    values = random_values(model.state_dict())
    arrays = {name: value.numpy() for name, value in values.items()}
    data = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(data))
    InstSegCheckpointer(model, for_test=True).load(str(tmp_path / "model_final.pkl"))
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.fixture
def trained(tmp_path):
    """A checkpoint as the trainer writes it."""
    lists = {"class_names": ["a", "b", "ü"], "category_ids": [1, 3, 9]}
    metadata = {"cfg": tiny_config("BlendMask", "INPUT.MIN_SIZE_TEST", 64).dump(), **lists}
    InstSegCheckpointer(tiny_model("BlendMask"), str(tmp_path), metadata=metadata).save("model_final", iteration=7)
    return str(tmp_path / "model_final.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "weights_alone.pth"])
def test_a_converted_file_is_as_good(trained, tmp_path, capsys, name):
    target = str(tmp_path / name)
    assert convert([trained, target]) == 0
    assert capsys.readouterr().out == f"{target}: {len(tiny_model('BlendMask').state_dict())} tensors\n"
    assert set(read_extra(target)) == {"cfg", "class_names", "category_ids"}
    before, after = (Predictor.from_checkpoint(path) for path in (trained, target))
    assert after.class_names == ["a", "b", "ü"]
    assert [after.category_id(i) for i in range(3)] == [1, 3, 9]
    image = spots_image()
    assert torch.equal(before(image).scores, after(image).scores)
    assert torch.equal(before(image).pred_masks, after(image).pred_masks)


def test_an_authors_file_gets_our_names(tmp_path):
    official = {
        "module.proposal_generator.fcos_head.cls_logits.weight": torch.ones(3, 4, 3, 3),
        "module.backbone.fpn_lateral3.bias": torch.ones(4),
    }
    source, target = str(tmp_path / "theirs.pth"), str(tmp_path / "ours.safetensors")
    torch.save({"model": official, "optimizer": {"state": {}}}, source)
    assert convert([source, target]) == 0
    back = str(tmp_path / "back.pth")
    assert convert([target, back]) == 0
    state = torch.load(back)
    assert list(state) == ["model"]
    assert set(state["model"]) == {"proposal_generator.head.class_logits.weight", "backbone.fpn_lateral3.bias"}


def test_what_cannot_be_converted(tmp_path, capsys, trained):
    assert convert([trained, str(tmp_path / "model.onnx")]) == 2
    assert "the target must be a file that ends in .safetensors or .pth" in capsys.readouterr().err
    assert convert([str(tmp_path / "none.pth"), str(tmp_path / "a.pth")]) == 2
    assert "no such weight file" in capsys.readouterr().err
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": torch.zeros(1).numpy()}}))
    assert convert([str(tmp_path / "c2.pkl"), str(tmp_path / "a.pth")]) == 2
    assert "is not a complete model" in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()
