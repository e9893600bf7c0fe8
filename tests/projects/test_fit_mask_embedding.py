"""The script that fits ISTR's mask embedding: files, figures, pictures, wrong arguments."""

import importlib.util
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg_d2.data import make_shapes
from instseg_d2.modeling.istr import AE, PCA

SCRIPT = Path(__file__).resolve().parents[2] / "projects" / "ISTR" / "fit_mask_embedding.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, "train", 20, seed=3)
    return ["--json", str(folder / "train.json"), "--images", str(folder / "images"), "--device", "cpu"]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """run(arguments): the script's main, in a temporary folder."""
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as where a script is run
    spec = importlib.util.spec_from_file_location("fit_mask_embedding", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: None)
    before = list(logging.getLogger().handlers)
    yield lambda *arguments: module.main(module.parse(list(arguments)))
    logging.getLogger().handlers[:] = before


def test_pca_with_a_table(script, shapes, tmp_path, capsys):
    script(*shapes, "--method", "pca", "--dim", "5", "--table", "2", "8", "--output", "masks.npz")
    printed = capsys.readouterr().out
    assert "Explained variance of 8 components: 0." in printed
    rows = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit()]
    found = {int(row[0]): [float(x) for x in row[1:]] for row in rows if len(row) == 3}
    assert set(found) == {2, 8}
    assert found[2][0] < found[8][0] <= 1
    pca = PCA(dim=8, size=28)
    pca.load_file("masks.npz")
    assert pca.explained_ratio.sum() > 0.5
    for name in ("masks_components.png", "masks_masks.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture.min() < 50
        assert picture.max() > 200
    assert not list(tmp_path.glob(".*"))


def test_auto_encoder_and_dct(script, shapes, capsys):
    script(*shapes, "--method", "ae", "--dim", "8", "--epochs", "1", "--max-masks", "12")
    assert "Wrote output/mask_embedding_ae_112.pth" in capsys.readouterr().out
    AE(dim=8).load_file("output/mask_embedding_ae_112.pth")
    script(*shapes, "--method", "dct", "--table", "30", "300")
    values = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] in (["30"], ["300"])]
    assert float(values[0][1]) < float(values[1][1])
    assert float(values[1][1]) > 0.9
    assert np.prod(cv2.imread("output/mask_embedding_dct_112_masks.png").shape) > 1e5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "give either --dataset NAME, or --json FILE"),
        (["--json", "a.json"], "give either"),
        (["--dataset", "shapes_train", "--json", "a.json", "--images", "b"], "give either"),
        (["--dataset", "shapes_train", "--method", "ae", "--table", "3"], "--table"),
    ],
)
def test_wrong_arguments(script, arguments, match):
    with pytest.raises(ValueError, match=match):
        script(*arguments)
