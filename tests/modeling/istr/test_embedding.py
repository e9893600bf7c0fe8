"""Mask embeddings of ISTR: codes against direct transcriptions, fits, files, what stays frozen, streams of masks."""

import copy
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog

from instseg_d2.checkpoint.authors import convert_state_dict
from instseg_d2.config import get_cfg
from instseg_d2.config.istr import istr_value, istr_version
from instseg_d2.data.training_masks import TrainingMasks
from instseg_d2.errors import CheckpointError, DatasetError
from instseg_d2.modeling.istr import (
    AE,
    DCT,
    PCA,
    RawMask,
    build_mask_embedding,
    ensure_fitted,
    fit_embedding,
    held_out_split,
    reconstruction_ious,
)
from instseg_d2.modeling.istr import (
    embedding as embedding_module,
)
from instseg_d2.modeling.istr.autoencoder import PackedMasks
from instseg_d2.modeling.istr.components import rebatched, zigzag
from tests.data.records import record, square


def rectangles(count: int, size: int, seed: int = 0, kinds: int = 0) -> np.ndarray:
    """Masks of one filled rectangle each, uint8 (count, size, size), of so many kinds."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((kinds or count, size, size), np.uint8)
    for mask in masks:
        (top, left), (height, width) = rng.integers(0, size // 2, 2), rng.integers(size // 4, size, 2)
        mask[top : top + height, left : left + width] = 1
    return masks[np.arange(count) % len(masks)]


def config(**values):
    cfg = get_cfg()
    for key, value in values.items():
        cfg.MODEL.ISTR[key] = value
    return cfg


@pytest.fixture(scope="module")
def fitted_pca():
    pca = PCA(dim=20, size=28)
    pca.fit([rectangles(300, 28)])
    return pca


# Config and registry


def test_versions_and_embeddings_by_config():
    cfg = config()
    assert istr_version(cfg) == 1
    assert (istr_value(cfg, "MASK_SIZE"), istr_value(cfg, "MASK_WEIGHT")) == (28, 2.0)
    embedding = build_mask_embedding(cfg)
    assert (type(embedding), embedding.dim, embedding.size) == (PCA, 60, 28)
    for name, kind in (("PCA", PCA), ("DCT", DCT), ("AE", AE)):
        cfg = config(MASK_ENCODING_METHOD=name)
        assert istr_version(cfg) == 2
        assert (istr_value(cfg, "MASK_SIZE"), istr_value(cfg, "MASK_WEIGHT")) == (112, 5.0)
        embedding = build_mask_embedding(cfg)
        assert (type(embedding), embedding.dim, embedding.size) == (kind, 256, 112)
    assert istr_value(config(MASK_WEIGHT=3.0), "MASK_WEIGHT") == 3.0
    raw = build_mask_embedding(config(EMBEDDING="RawMask"))
    assert (type(raw), raw.dim, raw.size) == (RawMask, 784, 28)
    assert build_mask_embedding(config(ENCODE_NOISE=True)).noise
    assert not build_mask_embedding(config(MASK_ENCODING_METHOD="AE", FREEZE_ENCODER_BN=False)).freeze_encoder_bn


@pytest.mark.parametrize(("size", "dim"), [(28, 785), (28, 0)])
def test_sizes_that_do_not_fit(size, dim):
    with pytest.raises(ValueError, match=f"dim is {dim}; .* 1 to 784 numbers"):
        PCA(dim=dim, size=size)
    with pytest.raises(ValueError, match=f"size is {size}; the AE embedding needs 112"):
        AE(dim=8, size=size)


# PCA


def test_pca_against_a_transcription():
    rng = np.random.default_rng(1)
    pca = PCA(dim=5, size=6)
    components = np.linalg.qr(rng.normal(size=(36, 5)))[0].T
    variance, mean = np.array([4.1, 3.0, 2.2, 1.0, 0.3]), rng.normal(size=36)
    pca._set(components, mean, variance, np.full(5, 0.1))
    masks = rng.integers(0, 2, (4, 6, 6))
    codes = pca.encode(torch.tensor(masks))
    for i, mask in enumerate(masks):
        squeezed = np.where(mask.ravel() > 0, 0.975, 0.025)
        x = np.log(squeezed / (1 - squeezed))
        for k in range(5):
            expected = ((x - mean) * components[k]).sum() / np.sqrt(variance[k])
            assert codes[i, k].item() == pytest.approx(expected, abs=1e-5)
    decoded = pca.decode(codes)
    z = codes.numpy() * np.sqrt(variance)
    expected = 1 / (1 + np.exp(-(z @ components + mean)))
    np.testing.assert_allclose(decoded.flatten(1).numpy(), expected, atol=1e-5)
    assert codes.dtype == decoded.dtype == torch.float32


def test_pca_decodes_what_it_encodes(fitted_pca):
    pca = PCA(dim=12, size=16)
    masks = rectangles(90, 16, kinds=10)  # nine dimensions: codes of twelve numbers lose nothing
    pca.fit([masks[:40], masks[40:]])
    decoded = pca.decode(pca.encode(torch.tensor(masks)))
    squeezed = torch.where(torch.tensor(masks) > 0, 0.975, 0.025)
    torch.testing.assert_close(decoded, squeezed, atol=2e-3, rtol=0)
    assert reconstruction_ious(pca, [masks]).eq(1).all()
    # The codes of what was decoded are the codes again, and gradients pass from the mask to the code.
    codes = fitted_pca.encode(torch.tensor(rectangles(5, 28, seed=9))).requires_grad_()
    logits = fitted_pca.decode(codes).logit().flatten(1)
    again = (logits - fitted_pca.means) @ fitted_pca.components.T / fitted_pca.explained_variances.sqrt()
    torch.testing.assert_close(again, codes, atol=1e-3, rtol=1e-3)
    logits.sum().backward()
    assert codes.grad.abs().sum() > 0


def test_pca_fit_equals_scikit_learn():
    from sklearn.decomposition import PCA as FullPCA

    masks = rectangles(200, 12, kinds=9)  # eight dimensions, so that incremental components are exact
    pca = PCA(dim=8, size=12)
    pca.fit((masks[i : i + 7] for i in range(0, 200, 7)), batch_size=32)
    logit = np.log(0.975 / 0.025)
    full = FullPCA(8, svd_solver="full").fit((2.0 * masks - 1).reshape(200, -1) * logit)
    np.testing.assert_allclose(pca.means, full.mean_, atol=1e-4)
    np.testing.assert_allclose(pca.explained_variances, full.explained_variance_, rtol=1e-3)
    np.testing.assert_allclose(pca.explained_ratio, full.explained_variance_ratio_, rtol=1e-3)
    np.testing.assert_allclose(pca.components.numpy().T @ pca.components.numpy(),
                               full.components_.T @ full.components_, atol=1e-3)  # fmt: skip
    np.testing.assert_allclose(pca.components.norm(dim=1), 1, atol=1e-4)


def test_pca_with_fewer_masks_than_numbers():
    pca = PCA(dim=60, size=28)
    assert not pca.fitted
    masks = rectangles(7, 28)
    pca.fit([masks])
    assert pca.fitted
    codes = pca.encode(torch.tensor(masks))
    assert torch.isfinite(codes).all()
    assert codes[:, 7:].eq(0).all()
    assert reconstruction_ious(pca, [masks]).min() > 0.99
    one = PCA(dim=3, size=28)
    one.fit([masks[:1]])
    assert torch.isfinite(one.decode(one.encode(torch.tensor(masks)))).all()
    with pytest.raises(DatasetError, match="has none"):
        PCA(dim=3, size=28).fit([])


def test_the_fit_says_that_it_needs_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(CheckpointError, match="pip install scikit-learn"):
        PCA(dim=3, size=28).fit([rectangles(5, 28)])


def test_pca_noise_is_the_authors_way_only():
    masks = torch.tensor(rectangles(3, 28))
    pca = PCA(dim=4, size=28, noise=True)
    pca.components[:] = torch.eye(784)[:4]
    assert not torch.equal(pca.encode(masks), pca.encode(masks))
    squeezed = pca._logits(masks.float()).sigmoid()
    inside = masks.flatten(1) > 0
    assert squeezed[inside].min() > 0.949
    assert squeezed[inside].max() < 0.991
    assert squeezed[~inside].min() > 0.009
    assert squeezed[~inside].max() < 0.051
    low = (squeezed[~inside] - 0.01).abs() < 1e-4  # u below 0.2
    assert low.float().mean().item() == pytest.approx(0.2, abs=0.05)
    pca.noise = False
    assert torch.equal(pca.encode(masks), pca.encode(masks))


def test_pca_files(fitted_pca, tmp_path):
    path = str(tmp_path / "components.npz")
    fitted_pca.save_file(path)
    with np.load(path) as file:
        shapes = {key: file[key].shape for key in file}
    assert shapes == {
        "components_c": (1, 20, 784),
        "mean_c": (1, 784),
        "explained_variance_c": (1, 20),
        "ratio_c": (1, 20),
    }
    other = PCA(dim=20, size=28)
    other.load_file(path)
    assert other.fitted
    masks = torch.tensor(rectangles(6, 28, seed=3))
    assert torch.equal(other.encode(masks), fitted_pca.encode(masks))
    np.testing.assert_array_equal(other.explained_ratio, fitted_pca.explained_ratio)
    fewer = PCA(dim=8, size=28)
    fewer.load_file(path)
    assert torch.equal(fewer.components, fitted_pca.components[:8])
    with pytest.raises(CheckpointError, match=r"shape \(20, 784\); this config needs 21 of 28 x 28"):
        PCA(dim=21, size=28).load_file(path)
    with pytest.raises(CheckpointError, match="needs 8 of 16 x 16"):
        PCA(dim=8, size=16).load_file(path)
    np.savez(tmp_path / "other.npz", components=np.zeros(3))
    (tmp_path / "no.npz").write_bytes(b"nothing")
    for name in ("other.npz", "no.npz"):
        with pytest.raises(CheckpointError, match="does not contain the arrays components_c"):
            fewer.load_file(str(tmp_path / name))
    with pytest.raises(CheckpointError, match="there is no file"):
        fewer.load_file(str(tmp_path / "absent.npz"))
    with pytest.raises(CheckpointError, match="not learned"):
        DCT(dim=8, size=28).load_file(path)


def test_a_fit_travels_in_the_state_dict(fitted_pca):
    assert set(fitted_pca.state_dict()) == {"components", "explained_variances", "means"}
    other = PCA(dim=20, size=28)
    other.load_state_dict(fitted_pca.state_dict())
    assert other.fitted
    assert not DCT(dim=8, size=28).state_dict()


# DCT and raw masks


def test_zigzag_by_hand():
    expected = [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0), (3, 1), (2, 2)]
    assert zigzag(4, 12).tolist() == [list(pair) for pair in expected]
    assert len({tuple(pair) for pair in zigzag(5, 25).tolist()}) == 25


@pytest.mark.parametrize(("size", "dim"), [(112, 256), (28, 60), (9, 50), (6, 36)])
def test_dct_against_scipy(size, dim):
    masks = rectangles(4, size)
    embedding = DCT(dim=dim, size=size)
    codes = embedding.encode(torch.tensor(masks))
    spectrum = scipy.fft.dctn(masks.astype(np.float64), type=2, norm="ortho", axes=(1, 2))
    places = []
    for i in range(2 * size):
        for j in range(i + 1):
            row, column = (i - j, j) if i % 2 == 0 else (j, i - j)
            if row < size and column < size:
                places.append((row, column))
    expected = np.stack([spectrum[:, row, column] for row, column in places[:dim]], 1)
    np.testing.assert_allclose(codes, expected, atol=2e-4)
    grid = np.zeros_like(spectrum)
    for k, (row, column) in enumerate(places[:dim]):
        grid[:, row, column] = codes[:, k]
    np.testing.assert_allclose(
        embedding.decode(codes), scipy.fft.idctn(grid, type=2, norm="ortho", axes=(1, 2)), atol=1e-5
    )
    torch.testing.assert_close(embedding.encode(embedding.decode(codes)), codes, atol=2e-4, rtol=1e-4)


def test_raw_masks_are_their_own_codes():
    masks = torch.tensor(rectangles(3, 28))
    raw = RawMask(size=28)
    assert raw.fitted
    assert torch.equal(raw.encode(masks), masks.flatten(1).float())
    assert torch.equal(raw.decode(raw.encode(masks)), masks.float())


# Auto-encoder


def naive_encoder(state, masks):
    x = masks[:, None].float()
    for i in (0, 3, 6, 9):
        x = F.conv2d(x, state[f"encoder.{i}.weight"], state[f"encoder.{i}.bias"], stride=2, padding=1)
        x = naive_norm(state, f"encoder.{i + 1}", x)
    return torch.einsum("mcyx,dcyx->md", x, state["encoder.12.weight"]) + state["encoder.12.bias"]


def naive_norm(state, name, x):
    mean, variance, weight, bias = (
        state[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    x = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
    return torch.where(x > 0, x, x.exp() - 1)  # ELU


def naive_decoder(state, codes, roi_features=None):
    x = torch.einsum("md,dcyx->mcyx", codes, state["decoder.1.weight"]) + state["decoder.1.bias"][:, None, None]
    x = naive_norm(state, "decoder.2", x)
    for i in (4, 5, 6, 7):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = F.conv2d(x, state[f"decoder.{i}.up.1.weight"], state[f"decoder.{i}.up.1.bias"], padding=1)
        x = naive_norm(state, f"decoder.{i}.up.2", x)
        if i == 5 and roi_features is not None:
            x = x + roi_features
    x = torch.einsum("mcyx,c->myx", x, state["decoder.8.weight"][0, :, 0, 0]) + state["decoder.8.bias"]
    return 1 / (1 + (-x).exp())


def lively_ae(dim=16, **kwargs):
    """An auto-encoder with random weights and batch statistics."""
    torch.manual_seed(0)
    embedding = AE(dim=dim, **kwargs)
    for module in embedding.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
    return embedding


def test_auto_encoder_against_a_transcription():
    embedding = lively_ae().eval()
    state = embedding.state_dict()
    masks = torch.tensor(rectangles(3, 112))
    codes = embedding.encode(masks)
    assert codes.shape == (3, 16)
    assert not codes.requires_grad
    torch.testing.assert_close(codes, naive_encoder(state, masks), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embedding.decode(codes), naive_decoder(state, codes), atol=1e-5, rtol=1e-4)
    roi = torch.randn(3, 32, 28, 28)
    with_roi = embedding.decode(codes, roi)
    torch.testing.assert_close(with_roi, naive_decoder(state, codes, roi), atol=1e-5, rtol=1e-4)
    assert (with_roi - embedding.decode(codes)).abs().max() > 0.05


def test_the_encoder_is_frozen_and_the_decoder_learns():
    embedding = lively_ae().train()
    before = copy.deepcopy(embedding.state_dict())
    masks = torch.tensor(rectangles(4, 112))
    codes = embedding.encode(masks).requires_grad_()
    roi = torch.randn(4, 32, 28, 28, requires_grad=True)
    embedding.decode(codes, roi).square().sum().backward()
    assert all(torch.equal(before[k], v) for k, v in embedding.state_dict().items() if k.startswith("encoder"))
    assert not torch.equal(before["decoder.2.running_mean"], embedding.decoder[2].running_mean)
    assert not any(p.requires_grad for p in embedding.encoder.parameters())
    for tensor in (codes, roi, *embedding.decoder.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert codes.grad.abs().sum() > 0
    assert roi.grad.abs().sum() > 0
    # The authors' way: the weights stay, the statistics drift.
    drifting = lively_ae(freeze_encoder_bn=False).train()
    drifting.encode(masks)
    assert not torch.equal(before["encoder.1.running_mean"], drifting.encoder[1].running_mean)
    assert torch.equal(before["encoder.0.weight"], drifting.encoder[0].weight)


def test_auto_encoder_fit_and_file(tmp_path):
    masks = rectangles(24, 112)
    torch.manual_seed(0)
    embedding = AE(dim=16)
    before = reconstruction_ious(embedding, [masks]).mean()
    assert not embedding.fitted
    embedding.train()
    embedding.fit(iter([masks[:10], masks[10:]]), epochs=5, batch_size=4, learning_rate=5e-3)
    assert embedding.fitted
    assert embedding.training
    assert not embedding.encoder.training
    assert not any(p.requires_grad for p in embedding.encoder.parameters())
    assert all(p.requires_grad and p.grad is None for p in embedding.decoder.parameters())
    after = reconstruction_ious(embedding, [masks]).mean()
    assert after > before + 0.4

    path = str(tmp_path / "smt.pth")
    embedding.save_file(path)
    data = torch.load(path, weights_only=True)
    assert set(data) == {"E", "D"}
    assert "encoder.12.weight" in data["E"]
    assert "decoder.7.up.1.weight" in data["D"]
    other = AE(dim=16)
    other.load_file(path)
    assert other.fitted
    assert torch.equal(other.encode(torch.tensor(masks[:2])), embedding.encode(torch.tensor(masks[:2])))
    with pytest.raises(CheckpointError, match="with codes of length 8"):
        AE(dim=8).load_file(path)
    torch.save({"E": data["E"]}, path)
    with pytest.raises(CheckpointError, match="does not contain the state dicts E and D"):
        other.load_file(path)
    with pytest.raises(CheckpointError, match="there is no file"):
        other.load_file(str(tmp_path / "absent.pth"))
    with pytest.raises(DatasetError, match="has none"):
        AE(dim=8).fit([])


# All of them


@pytest.mark.parametrize("make", [lambda: PCA(dim=6, size=28), lambda: DCT(dim=6, size=28), lambda: RawMask(size=28),
                                  lambda: AE(dim=6)])  # fmt: skip
def test_no_masks_and_autocast(make):
    embedding = make().train()
    size = embedding.size
    codes = embedding.encode(torch.zeros(0, size, size))
    assert codes.shape == (0, embedding.dim)
    decoded = embedding.decode(codes.requires_grad_())
    assert decoded.shape == (0, size, size)
    decoded.sum().backward()
    for parameter in embedding.parameters():
        assert not parameter.requires_grad or torch.isfinite(parameter.grad).all()
    assert all(torch.isfinite(tensor).all() for tensor in embedding.state_dict().values())
    masks = torch.tensor(rectangles(2, size))
    plain = embedding.eval().encode(masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = embedding.encode(masks)
        assert codes.dtype == embedding.decode(codes).dtype == torch.float32
    assert torch.equal(codes, plain)


def test_truncated_codes_in_the_table():
    masks = rectangles(40, 28)
    embedding = DCT(dim=100, size=28)
    ious = reconstruction_ious(embedding, [masks[:25], masks[25:]], [5, 30, 100])
    assert ious.shape == (40, 3)
    short = DCT(dim=30, size=28)
    torch.testing.assert_close(reconstruction_ious(short, [masks]), ious[:, 1])
    decoded = short.decode(short.encode(torch.tensor(masks))) >= 0.5
    for i in (0, 17):
        expected = (decoded[i].numpy() & (masks[i] > 0)).sum() / (decoded[i].numpy() | (masks[i] > 0)).sum()
        assert ious[i, 1].item() == pytest.approx(expected)
    assert ious.mean(0).diff().gt(0).all()


# Streams of masks


def test_every_tenth_record_is_held_out():
    many = [record(square(i, 5, 10 + i)) for i in range(30)]
    train, held_out = held_out_split(many)
    assert [many.index(x) for x in held_out] == [9, 19, 29]
    assert len(train) == 27


def test_streams_are_bounded():
    asked = []

    def stream():
        for i in range(40):
            asked.append(i)
            yield np.full((3, 1), i)

    batches = rebatched(stream(), 10)
    assert len(next(batches)) == 10
    assert len(asked) == 7  # 21 rows were enough to give ten away
    rest = list(batches)
    assert [len(batch) for batch in rest] == [10] * 10 + [10]
    assert np.concatenate(rest)[-1] == 39
    assert [len(b) for b in rebatched([np.zeros((23, 2))], 10)] == [10, 13]
    assert list(rebatched([], 10)) == []


def test_packed_masks():
    masks = rectangles(11, 13)  # 169 pixels: the last byte of a row is not full
    packed = PackedMasks([masks[:4], torch.tensor(masks[4:])], 13)
    assert len(packed) == 11
    assert np.array_equal(packed[:].numpy(), masks)
    assert np.array_equal(packed[np.array([7, 2])].numpy(), masks[[7, 2]])
    assert packed[:3].dtype == torch.float32


def test_sixty_numbers_describe_real_masks():
    """60 components of 28 x 28 keep 0.9 of held-out objects over 32^2 pixels."""
    if not os.environ.get("INSTSEG_DATASETS") or "coco_open_train" not in DatasetCatalog:
        pytest.skip("INSTSEG_DATASETS names no folder with coco_open")
    pca = PCA(dim=60, size=28)
    pca.fit(TrainingMasks(DatasetCatalog.get("coco_open_train"), 28))
    masks = TrainingMasks(DatasetCatalog.get("coco_open_val"), 28, min_area=32**2)
    assert reconstruction_ious(pca, masks).mean() > 0.9


# When training starts


@pytest.fixture
def mask_data():
    records = [record(square(3, 4, 10 + i), square(20, 5, 3 + i)) for i in range(12)]
    DatasetCatalog.register("masks_to_fit", lambda: records)
    yield "masks_to_fit"
    DatasetCatalog.remove("masks_to_fit")


def model_of(cfg):
    model = torch.nn.Module()
    model.mask_embedding = build_mask_embedding(cfg)
    return model


def test_training_fits_by_itself(mask_data, monkeypatch):
    cfg = config(MASK_DIM=4, FIT_MAX_MASKS=15)
    cfg.DATASETS.TRAIN = (mask_data,)
    model = model_of(cfg)
    counts = []
    monkeypatch.setattr(
        embedding_module,
        "fit_embedding",
        lambda e, masks, **kw: (counts.append(len(masks)), fit_embedding(e, masks, **kw)),
    )
    ensure_fitted(model, cfg)
    assert model.mask_embedding.fitted
    assert counts == [15]
    state = copy.deepcopy(model.state_dict())
    # Weights that hold a fit need neither data nor file.
    cfg.DATASETS.TRAIN = ("nowhere",)
    cfg.MODEL.ISTR.PATH_COMPONENTS = "nowhere.npz"
    ensure_fitted(model, cfg)
    # Another process takes what the main one found.
    other = model_of(cfg)
    monkeypatch.setattr(embedding_module.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(embedding_module.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(embedding_module.comm, "all_gather", lambda own: [model.mask_embedding.state_dict(), own])
    ensure_fitted(other, cfg)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in state.items())


def test_training_from_a_file(fitted_pca, tmp_path):
    path = str(tmp_path / "components.npz")
    fitted_pca.save_file(path)
    for key in ("PATH_COMPONENTS", "MASK_EMBEDDING_FILE"):
        cfg = config(MASK_DIM=10, **{key: path})
        model = model_of(cfg)
        ensure_fitted(model, cfg)
        assert torch.equal(model.mask_embedding.components, fitted_pca.components[:10])
    cfg = config(PATH_COMPONENTS=str(tmp_path / "absent.npz"))
    with pytest.raises(CheckpointError, match=r"PATH_COMPONENTS: there is no file .*absent\.npz.*fit_mask_embedding"):
        ensure_fitted(model_of(cfg), cfg)
    ensure_fitted(torch.nn.Linear(2, 2), cfg)  # other models are left alone
    for name in ("DCT", ""):
        cfg = config(MASK_ENCODING_METHOD=name, EMBEDDING="" if name else "RawMask")
        cfg.DATASETS.TRAIN = ("nowhere",)
        ensure_fitted(model_of(cfg), cfg)


# The authors' names


@pytest.mark.parametrize(
    ("names", "method"), [("istr_v1_R50", ""), ("istr_v2_PCA_R50", "PCA"), ("istr_v2_AE_R50", "AE")]
)
def test_the_authors_names(names, method):
    folder = os.environ.get("INSTSEG_OFFICIAL_PARAMETERS")
    if not folder:
        pytest.skip("INSTSEG_OFFICIAL_PARAMETERS names no folder of parameter lists")
    shapes = {}
    for line in Path(folder, f"{names}.txt").read_text().splitlines():
        name, _, shape = line.partition(" ")
        shapes[name] = torch.empty([int(n) for n in shape.strip("()").split(",") if n.strip()], device="meta")
    prefix = "mask_embedding."
    found = {k: tuple(v.shape) for k, v in convert_state_dict(shapes).items() if k.startswith(prefix)}
    ours = build_mask_embedding(config(MASK_ENCODING_METHOD=method)).state_dict()
    assert found == {prefix + k: tuple(v.shape) for k, v in ours.items()}
