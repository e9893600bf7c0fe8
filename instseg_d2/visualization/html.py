"""Writes static pages with the pictures of a run, without scripts or network access."""

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Optional

import jinja2

from ..files import write_bytes

__all__ = ["write_index"]

PER_PAGE = 500  # pictures

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
<p>{% if before or after %}pictures {{ first }} to {{ first + entries | length - 1 }}
{%- if before %} &middot; <a href="{{ before }}">earlier ones</a>{% endif %}
{%- if after %} &middot; <a href="{{ after }}">further ones</a>{% endif %}
{%- else %}{{ entries | length }} picture{{ "s" if entries | length != 1 }}{% endif %}
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


def _page(number: int) -> str:
    return f"index_{number}.html" if number > 1 else "index.html"


def write_index(folder: str, entries: Iterable[Mapping], title: str, results: Optional[str] = "results.json") -> str:
    """
    Write ``index.html`` to the folder of the pictures, and ``index_2.html`` and so on for more than `PER_PAGE`.

    Args:
        folder: an existing folder; all names below are relative to it.
        entries: one mapping per picture: ``name`` (shown), ``picture`` (file), and optionally ``counts``
            (class name -> number of objects), ``explain`` (file) and ``video`` (True: the file is a video).
        title: heading of the page.
        results: JSON file to link to; None: no link.

    Returns:
        The path of the first page.
    """
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    entries = iter(entries)
    chunk = list(itertools.islice(entries, PER_PAGE))
    for number in itertools.count(1):
        further = list(itertools.islice(entries, PER_PAGE))
        page = template.render(
            title=title,
            entries=chunk,
            first=PER_PAGE * (number - 1) + 1,
            before=_page(number - 1) if number > 1 else None,
            after=_page(number + 1) if further else None,
            results=results,
            most=_most,
        )
        write_bytes(os.path.join(folder, _page(number)), page.encode("utf-8"))
        if not further:
            return os.path.join(folder, _page(1))
        chunk = further
