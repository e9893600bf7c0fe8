"""
Prediction on a small Ray cluster of three one-core machines, one of which is lost: each image is in the output exactly
once, with the results of one process.
"""

import contextlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instseg_d2.commands import run
from instseg_d2.inference.predictor import Predictor
from instseg_d2.modeling.build import build
from tests.tiny import THIN, tiny_config

ray = pytest.importorskip("ray", reason="needs ray[data]")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from ray.cluster_utils import Cluster  # noqa: E402

from instseg_d2.apps import BatchPredictor, ray_engine  # noqa: E402
from instseg_d2.apps.parquet import read_rows  # noqa: E402
from instseg_d2.apps.ray_engine import predict_on_ray  # noqa: E402

NUMBER = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images, one of them broken, and a model that finds something in each."""
    folder = tmp_path_factory.mktemp("cluster")
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(NUMBER):
        coarse = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 64)).save(folder / "images" / f"{index:02}.png")
    (folder / "images" / "30.png").write_bytes(b"no image")
    torch.manual_seed(0)
    cfg = tiny_config("BlendMask", *THIN, "INPUT.MIN_SIZE_TEST", 0, finding=True)
    content = {"model": build(cfg).state_dict(), "cfg": cfg.dump(), "class_names": ["a", "b", "c"]}
    torch.save({**content, "category_ids": [5, 6, 9]}, folder / "model.pth")
    return folder


@pytest.fixture(scope="module")
def cluster():
    small = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(**small)
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    yield cluster
    ray.shutdown()
    with contextlib.suppress(Exception):
        cluster.shutdown()


def predict(data, out, *words, inputs=None):
    common = ["--engine", "ray", "--weights", str(data / "model.pth"), "--score-threshold", "0.05", "--part-size", "4"]
    return run("predict", [*common, "--input", str(inputs or data / "images"), "--output", str(out), *map(str, words)])


def rows(out, *columns):
    return {row["path"]: row for row, _ in read_rows(str(out), ("path", "error", *columns))}


def test_a_machine_is_lost(data, cluster, tmp_path, monkeypatch):
    out, lost, at_once = tmp_path / "out", [], []
    update = ray_engine.tqdm.update

    def updating(self, count=1):
        free = ray._private.state.available_resources_per_node()
        busy = [node for node in cluster.worker_nodes if not free.get(node.node_id, {"CPU": 1}).get("CPU")]
        at_once.append(len(busy))
        if not lost:  # after the first part
            lost.append(busy[0])  # where an actor is
            cluster.remove_node(busy[0])
            (out / ".unfinished-0-0.parquet").touch()  # as of an actor that was writing
        return update(self, count)

    monkeypatch.setattr(ray_engine.tqdm, "update", updating)
    assert predict(data, out, "--coco", tmp_path / "coco.json") == 0
    assert lost
    assert max(at_once) > 1  # machines that predict
    parts = sorted(os.listdir(out))
    assert len(parts) == NUMBER / 4
    assert all(name.startswith("part-") and name.endswith(".parquet") for name in parts)
    names = [row["path"] for row, _ in read_rows(str(out))]
    assert sorted(names) == sorted(str(path) for path in (data / "images").iterdir())
    found, plain = (
        rows(out, "height", "width", "boxes", "scores", "labels", "masks"),
        Predictor.from_checkpoint(str(data / "model.pth")),
    )
    objects = 0
    for path, row in found.items():
        if path.endswith("30.png"):
            assert "cannot be read as an image" in row["error"]
            continue
        (expected,) = plain.predict([plain.preprocess(path)], 0.05, masks="run_lengths")
        assert row["error"] is None
        assert (row["height"], row["width"]) == (64, 96)
        np.testing.assert_allclose(np.reshape(row["boxes"], (-1, 4)), expected.pred_boxes.tensor, atol=1e-3)
        np.testing.assert_allclose(row["scores"], expected.scores, atol=1e-5)
        assert row["labels"] == expected.pred_classes.tolist()
        assert row["masks"] == [code["counts"] for code in expected.pred_masks.codes]
        objects += len(expected)
    assert objects > NUMBER
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert len(coco) == objects
    assert {entry["category_id"] for entry in coco} <= {5, 6, 9}
    assert len({entry["image_id"] for entry in coco}) == len({entry["file_name"] for entry in coco})


def test_it_is_continued(data, cluster, tmp_path, capsys):
    out, files = tmp_path / "out", sorted(map(str, (data / "images").iterdir()))
    (tmp_path / "list.txt").write_text("\n".join(files[:10]) + "\n/absent.png\n")
    assert predict(data, out, inputs=tmp_path / "list.txt") == 0
    assert rows(out)["/absent.png"]["error"] == "/absent.png: no such image file."
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert predict(data, out) == 2
    assert "add --resume, or choose another folder" in capsys.readouterr().err
    assert predict(data, out, "--resume", inputs=data / "images" / "0*.png") == 0
    assert predict(data, out, "--resume", inputs=data / "images" / "1*.png") == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name in before} == before
    assert sorted(row["path"] for row, _ in read_rows(str(out))) == sorted([*files[:20], "/absent.png"])


def test_parquet_in_parquet_out(data, cluster, tmp_path, capsys):
    files = sorted((data / "images").iterdir())[25:35]
    (tmp_path / "in").mkdir()
    table = pa.table({"content": [path.read_bytes() for path in files], "image_id": list(range(100, 110))})
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=4)
    out = tmp_path / "out"
    assert predict(data, out, inputs=tmp_path / "in") == 2
    assert "Say --column NAME" in capsys.readouterr().err
    assert predict(data, out, "--column", "bytes", inputs=tmp_path / "in") == 2
    assert "has no column bytes; it has content, image_id" in capsys.readouterr().err
    assert predict(data, out, "--column", "content", "--coco", tmp_path / "coco.json", inputs=tmp_path / "in") == 0
    assert len(os.listdir(out)) == 3
    read = [row for row, _ in read_rows(str(out), ("image_id", "scores", "error", "content"))]
    assert sorted(row["image_id"] for row in read) == list(range(100, 110))
    assert [row["image_id"] for row in read if row["error"]] == [105]
    assert "content" not in read[0]
    plain = Predictor.from_checkpoint(str(data / "model.pth"))
    expected = {
        100 + index: plain.predict([plain.preprocess(str(path))], 0.05)[0].scores
        for index, path in enumerate(files)
        if index != 5
    }
    for row in read:
        np.testing.assert_allclose(row["scores"], expected.get(row["image_id"], []), atol=1e-5)
    assert {entry["image_id"] for entry in json.loads((tmp_path / "coco.json").read_text())} <= set(expected)
    # Addresses in a column; what is done is left out.
    pq.write_table(pa.table({"where": [str(path) for path in files[:3]]}), tmp_path / "b.parquet")
    out = tmp_path / "addresses"
    assert predict(data, out, "--column", "where", inputs=tmp_path / "b.parquet") == 0
    assert sorted(rows(out)) == [str(path) for path in files[:3]]
    assert predict(data, out, "--column", "where", "--resume", inputs=tmp_path / "b.parquet") == 0
    assert len(os.listdir(out)) == 1


def test_an_image_that_brings_every_worker_down_is_a_row(data, cluster, tmp_path, monkeypatch, caplog):
    class Deadly(BatchPredictor):
        def __call__(self, batch):
            if any(path.endswith("07.png") for path in batch["path"]):
                os._exit(1)
            return super().__call__(batch)

    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    predictor = Deadly(data / "model.pth", score_threshold=0.05)
    files = str(data / "images" / "0*.png")
    assert predict_on_ray(predictor, [files], str(tmp_path / "out"), part_size=4)
    assert "4 images are repeated one by one" in caplog.text  # those of its part, of no other
    found = rows(tmp_path / "out")
    assert sorted(found) == [str(data / "images" / f"{i:02}.png") for i in range(10)]
    failed = [path for path, row in found.items() if row["error"]]
    assert [os.path.basename(path) for path in failed] == ["07.png"]
    assert found[failed[0]]["error"].startswith("the worker failed")


def test_columns_of_every_kind(data, cluster, tmp_path, capsys):
    """Contents with gaps, large strings, dictionaries, structs of Hugging Face's data sets, columns with late texts."""
    files = [str(data / "images" / f"{i:02}.png") for i in range(3)]
    contents = [Path(file).read_bytes() for file in files]
    nested = pa.array([{"a": 1}, None, {"a": 3}])
    columns = {
        "late": ([*[None] * 70, contents[0]], {"x": pa.array([*[None] * 70, "text"])}),
        "gap": ([contents[0], None, contents[2]], {"bytes": pa.array([1, 2, 3]), "path": pa.array([1, 2, 3])}),
        "large": (pa.array(files, pa.large_string()), {"nested": nested}),
        "dictionary": (pa.array(files).dictionary_encode(), {"bytes": pa.array(contents)}),
        "struct": ([{"bytes": content, "path": file} for content, file in zip(contents, files)], {}),
        "struct_of_paths": ([{"bytes": None, "path": file} for file in files], {}),
    }
    plain = Predictor.from_checkpoint(str(data / "model.pth"))
    scores = [plain.predict([plain.preprocess(file)], 0.05)[0].scores.tolist() for file in files]
    for name, (images, others) in columns.items():
        table = pa.table({"image_": images, **others})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        out = tmp_path / name
        assert predict(data, out, "--column", "image_", inputs=tmp_path / f"{name}.parquet") == 0, (
            capsys.readouterr().err
        )
        found = pq.read_table(out)
        if name == "late":
            assert found["x"].to_pylist()[-1] == "text"
            continue
        for row, expected in zip(found.to_pylist(), scores):
            if row["error"] is None:
                np.testing.assert_allclose(row["scores"], expected, atol=1e-5)
        errors = found["error"].to_pylist()
        assert errors == [None, "there is no image in this row.", None] if name == "gap" else not any(errors)
        for other, values in others.items():
            assert found[other].to_pylist() == values.to_pylist()


def test_parquet_that_is_refused(data, tmp_path, capsys):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 nothing PAR1")
    pq.write_table(pa.table({"number": [1], "where": ["a.png"], "labels": [3]}), tmp_path / "p[1].parquet")
    (tmp_path / "empty.txt").write_text("\n")
    for name, column, message in (
        ("damaged.parquet", "x", "damaged.parquet cannot be read as Parquet"),
        ("p[1].parquet", "number", "the column number has int64; image files (binary) or addresses (string)"),
        ("p[1].parquet", "where", "the column labels would be overwritten by that of the predictions; rename it"),
        ("empty.txt", None, "this list is empty"),
        ("empty.txt", "x", "--column is that of Parquet files"),
    ):
        words = ["--column", column] if column else []
        assert predict(data, tmp_path / "out", *words, inputs=tmp_path / name) == 2
        assert message in capsys.readouterr().err


def test_what_is_refused(data, tmp_path, capsys):
    for words, message in (
        (["--explain"], "--explain works only without --engine ray"),
        (["--no-pictures"], "--no-pictures works only without --engine ray"),
        (["--coco", str(tmp_path / "absent" / "x.json")], "it must be a file in an existing folder"),
        (["--score-threshold", "50"], "the score threshold must be between 0 and 1; got 50"),
        (["--part-size", "0"], "--part-size must be at least 1; got 0"),
        (["--tile", "8"], "--tile is 8; a tile must have at least 32 pixels a side"),
    ):
        assert predict(data, tmp_path / "out", *words) == 2
        assert message in capsys.readouterr().err
    assert predict(data, tmp_path / "out", inputs=tmp_path / "absent.txt") == 2
    assert "absent.txt: there is no such list" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert predict(data, tmp_path / "out", inputs=tmp_path / "empty") == 2
    assert "no image in this folder" in capsys.readouterr().err
