"""The page of results: names are escaped, links work, and the page is written completely."""

import os
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from instseg_d2.visualization import write_index


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [unquote(value) for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def test_index_lists_pictures_counts_and_links(tmp_path):
    entries = [
        {"name": "a & <b>.png", "picture": "a & <b>.jpg", "counts": {"cat": 1, "<dog>": 3}, "explain": "a_explain.jpg"},
        {"name": "100%#1.png", "picture": "100%#1.jpg"},
        {"name": "clip.mp4", "picture": "clip.mp4", "counts": {"cat": 1}, "video": True},
    ]
    path = write_index(str(tmp_path), entries, "Shapes & <things>")
    assert os.listdir(tmp_path) == ["index.html"]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    page = _Page(text)
    assert {"results.json", "a & <b>.jpg", "a_explain.jpg", "100%#1.jpg", "clip.mp4"} == set(page.links)
    assert "b" not in page.tags  # nothing of a name became markup
    assert "dog" not in page.tags
    assert page.tags.count("figure") == 3
    assert page.tags.count("video") == 1
    assert "Shapes & <things>" in page.text
    assert "4 objects3 <dog>, 1 cat" in page.text
    assert "1 object1 cat" in page.text
    assert "0 objects" in page.text
    assert "http" not in text  # no external resource


@pytest.mark.parametrize(("count", "pages"), [(3, 1), (4, 2), (6, 2), (7, 3)])
def test_many_pictures_are_shared_out_over_pages(tmp_path, monkeypatch, count, pages):
    monkeypatch.setattr("instseg_d2.visualization.html.PER_PAGE", 3)
    path = write_index(str(tmp_path), ({"name": f"{i}.png", "picture": f"{i}.jpg"} for i in range(count)), "Many")
    names = ["index.html", "index_2.html", "index_3.html"][:pages]
    assert sorted(os.listdir(tmp_path)) == names
    assert os.path.basename(path) == "index.html"
    pictures = []
    for number, name in enumerate(names):
        page = _Page((tmp_path / name).read_text())
        neighbours = {names[i] for i in (number - 1, number + 1) if 0 <= i < pages}
        assert {link for link in page.links if link.startswith("index")} == neighbours
        pictures += dict.fromkeys(link for link in page.links if link.endswith(".jpg"))
        first = 3 * number + 1
        shown = f"pictures {first} to {min(first + 2, count)}" if pages > 1 else f"{count} pictures"
        assert shown in page.text
    assert pictures == [f"{i}.jpg" for i in range(count)]


def test_index_without_entries_replaces_the_old_one(tmp_path):
    (tmp_path / "index.html").write_text("old")
    write_index(str(tmp_path), [], "Nothing", results=None)
    text = (tmp_path / "index.html").read_text()
    assert "0 pictures" in text
    assert "old" not in text
    assert "results.json" not in text
