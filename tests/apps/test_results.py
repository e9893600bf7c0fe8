"""Results written as they come, names of pictures, and runs that are stopped, killed or cannot write."""

import errno
import json
import os
import unicodedata
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from instseg_d2.apps import runs
from instseg_d2.apps.predict import run_demo
from instseg_d2.apps.results import MAX_STEM, unique_stem
from instseg_d2.files import ListFile, write_bytes
from instseg_d2.inference.predictor import Predictor
from tests.bright_spots import save_checkpoint, spots_config, spots_image


@pytest.fixture
def weights(tmp_path):
    return save_checkpoint(tmp_path / "spots.pth", spots_config(), ["red", "blue"])


@pytest.fixture
def predictor(weights):
    return Predictor.from_checkpoint(weights)


def write(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(spots_image()).save(folder / name)
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text())


def pictures(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))


def test_a_list_as_it_was_always_written(tmp_path):
    file = ListFile(tmp_path / "results.json")
    entries = [{"score": 0.5, "name": "é\udcff"}, {"bbox": [1, 2.5]}, {}]
    file.add(entries[:2])
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == entries[:2]
    file.add([])
    file.add(entries[2:])
    assert file.count == 3
    file.finish()
    assert os.listdir(tmp_path) == ["results.json"]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    assert (tmp_path / "results.json").read_text() == f"[{lines}]\n"
    ListFile(tmp_path / "results.json").finish()
    assert (tmp_path / "results.json").read_text() == "[]\n"


@pytest.mark.parametrize("character", ["b", "é", "漢", "😀", "\udcff"])
@pytest.mark.parametrize("length", [1, 50, 60, 120, 200, 201, 243, 251])
def test_names_fit_and_stay_apart(tmp_path, character, length):
    count = max(1, length // len(os.fsencode(character)))
    taken, ends = set(), ("", "_explain")
    stems = [
        unique_stem(os.path.join("x", character * count + f"{end}.png"), taken, ends) for end in ("", "", "_explain")
    ]
    assert len({stem + end for stem in stems for end in ends}) == 6
    for stem in stems:
        assert len(f"{stem}_explain.jpg".encode()) <= 255
        write_bytes(tmp_path / f"{stem}_explain.jpg", b"")
    assert len(list(tmp_path.iterdir())) == 3
    if character != "\udcff" and length <= MAX_STEM:
        assert stems[:2] == [character * count, f"{character * count}_2"]


def test_long_and_strange_names_of_images(tmp_path, predictor):
    names = ["b" * 243 + ".png", "b" * 244 + ".png", "漢" * 80 + ".png", "a b#%?&'\".png", "1.png", "<i>.png"]
    names += [os.fsdecode(b"x\xff\xe9.png"), os.fsdecode(b"x\xfe\xe9.png")]
    names += [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    folder, out = write(tmp_path / "in", *names), tmp_path / "out"
    assert run_demo(predictor, folder, out, score_threshold=0, explain=True)
    assert len(pictures(out)) == 2 * len(names)
    found = results(out)
    assert {result["file_name"] for result in found} == set(names)
    assert all(os.path.isfile(folder / result["file_name"]) for result in found)
    page = (out / "index.html").read_text(encoding="utf-8")
    linked = {unquote(part.split('"')[0]) for part in page.split('href="')[1:]}
    assert linked == {"results.json", *pictures(out)}
    assert "<i>" not in page


def refuse(monkeypatch, error, wanted):
    def failing(path, data):
        if wanted(os.path.basename(path)):
            raise OSError(error, os.strerror(error))
        write_bytes(path, data)

    monkeypatch.setattr(runs, "write_bytes", failing)


@pytest.mark.parametrize("error", [errno.ENAMETOOLONG, errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS])
def test_a_picture_that_cannot_be_written_is_skipped(tmp_path, predictor, monkeypatch, caplog, error):
    folder, out = write(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "out"
    refuse(monkeypatch, error, lambda name: name.startswith("b"))
    with caplog.at_level("INFO"):
        assert run_demo(predictor, folder, out, score_threshold=0)
    assert pictures(out) == ["a.jpg", "c.jpg"]
    assert {result["file_name"] for result in results(out)} == {"a.png", "b.png", "c.png"}
    warning = f"the picture b.jpg of {folder / 'b.png'} cannot be written: {os.strerror(error)}"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [warning]
    assert "3 done, 1 picture not written" in caplog.text
    assert "b.png" not in (out / "index.html").read_text()


def test_a_picture_too_wide_for_jpeg(tmp_path, predictor, caplog):
    folder = write(tmp_path / "in", "a.png")
    Image.fromarray(np.zeros((2, 66000, 3), np.uint8)).save(folder / "wide.png")
    assert run_demo(predictor, folder, tmp_path / "out")
    assert pictures(tmp_path / "out") == ["a.jpg"]
    assert "wide.png cannot be written: a side of a JPEG has at most 65500 pixels" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_a_run_that_stops_keeps_what_it_has(tmp_path, predictor, monkeypatch, caplog, error):
    folder, out = write(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "out"
    draw, drawn = runs.draw_instances, []

    def failing(*args, **kwargs):
        drawn.append(0)
        if len(drawn) == 2:
            raise error
        return draw(*args, **kwargs)

    monkeypatch.setattr(runs, "draw_instances", failing)
    if error is RuntimeError:
        with pytest.raises(RuntimeError):
            run_demo(predictor, folder, out, score_threshold=0)
    else:
        run_demo(predictor, folder, out, score_threshold=0)
    if error is MemoryError:  # of one image
        assert f"skipped {folder / 'b.png'}: out of memory" in caplog.text
        assert {result["file_name"] for result in results(out)} == {"a.png", "c.png"}
    else:
        assert {result["file_name"] for result in results(out)} == {"a.png"}
    assert "a.png" in (out / "index.html").read_text()


def test_results_that_cannot_be_written_end_the_run(tmp_path, predictor, monkeypatch):
    folder = write(tmp_path / "in", "a.png")
    (tmp_path / "out" / "results.jsonl").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run_demo(predictor, folder, tmp_path / "out")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(tmp_path, weights):
    from instseg_d2.console import run_script

    folder, out = write(tmp_path / "in", "a.png"), tmp_path / "out"
    out.mkdir()
    (out / "results.jsonl").symlink_to("/dev/full")
    predictor = Predictor.from_checkpoint(weights)
    assert run_script(lambda: run_demo(predictor, folder, out, score_threshold=0)) == 2


def test_skipped_pages_and_frames_are_counted(tmp_path, predictor, caplog):
    folder = write(tmp_path / "in", "a.png", "b.png")
    frames = [Image.fromarray(np.roll(spots_image(), i, 0)) for i in range(4)]
    frames[0].save(folder / "c.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "d.tif", save_all=True, append_images=frames[1:3])
    with caplog.at_level("INFO"):
        run_demo(predictor, folder, tmp_path / "out")
    assert "of a file is used: 5 more in 2 files are skipped." in caplog.text


def test_images_of_16_bits_in_one_folder_keep_their_relative_brightness(tmp_path, predictor, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, peak in (("dark.png", 1000), ("light.png", 4000)):
        values = np.zeros((60, 80), np.uint16)
        values[10:30, 10:40] = peak
        Image.fromarray(values).save(folder / name)
    with caplog.at_level("INFO"):
        run_demo(predictor, folder, tmp_path / "out", score_threshold=0)
    assert {(r["file_name"], round(r["score"] * 255)) for r in results(tmp_path / "out")} == {
        ("dark.png", 1000 >> 4),
        ("light.png", 4000 >> 4),
    }
    assert caplog.text.count("their values 0 to 4095 become 0 to 255") == 1
