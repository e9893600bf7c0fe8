"""Writes a static page with the pictures of a run: one file, without scripts or network access."""

import os
from collections.abc import Mapping, Sequence
from typing import Optional

import jinja2

from ..files import write_bytes

__all__ = ["write_index"]

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fafafa }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1.2em }
figure { margin: 0; background: #fff; border: 1px solid #ddd; border-radius: 6px; overflow: hidden }
figure img, figure video { width: 100%; height: 220px; object-fit: contain; background: #eee; display: block }
figcaption { padding: .5em .8em; overflow-wrap: anywhere }
small { color: #666 }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ entries | length }} picture{{ "s" if entries | length != 1 }}
{%- if results %} &middot; <a href="{{ results | urlencode }}">{{ results }}</a> (COCO results format){% endif %}</p>
<main>
{% for entry in entries -%}
{% set link = entry.picture | urlencode -%}
{% set total = entry.counts.values() | sum if entry.counts else 0 -%}
<figure>
{%- if entry.video %}<video src="{{ link }}" controls preload="metadata"></video>
{%- else %}<a href="{{ link }}"><img src="{{ link }}" alt="{{ entry.name }}" loading="lazy"></a>
{%- endif -%}
<figcaption><strong>{{ entry.name }}</strong><br>{{ total }} object{{ "s" if total != 1 }}
{%- if entry.counts %}<br><small>
{%- for name, count in most(entry.counts) %}{{ count }} {{ name }}{{ ", " if not loop.last }}{% endfor %}</small>
{%- endif -%}
{%- if entry.explain %}<br><a href="{{ entry.explain | urlencode }}">what the network sees</a>{% endif -%}
{%- if entry.video %}<br><a href="{{ link }}">{{ entry.picture }}</a>{% endif -%}
</figcaption></figure>
{% endfor -%}
</main>
</body></html>
"""


def _most(counts: Mapping) -> list:
    """(name, count), largest count first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def write_index(folder: str, entries: Sequence[Mapping], title: str, results: Optional[str] = "results.json") -> str:
    """
    Write ``index.html`` to the folder of the pictures.

    Args:
        folder: an existing folder; all names below are relative to it.
        entries: one mapping per picture: ``name`` (shown), ``picture`` (file), and optionally ``counts``
            (class name -> number of objects), ``explain`` (file) and ``video`` (True: the file is a video).
        title: heading of the page.
        results: JSON file to link to; None: no link.

    Returns:
        The path of the page.
    """
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    page = template.render(title=title, entries=entries, results=results, most=_most)
    path = os.path.join(folder, "index.html")
    write_bytes(path, page.encode("utf-8"))
    return path
