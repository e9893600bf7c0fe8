"""A static page that shows the pictures of a run: one file, no script, nothing from the network."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Optional
from urllib.parse import quote

from ..files import write_bytes

__all__ = ["write_index"]

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fafafa }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1.2em }}
figure {{ margin: 0; background: #fff; border: 1px solid #ddd; border-radius: 6px; overflow: hidden }}
figure img, figure video {{ width: 100%; height: 220px; object-fit: contain; background: #eee; display: block }}
figcaption {{ padding: .5em .8em; overflow-wrap: anywhere }}
small {{ color: #666 }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
<main>
{figures}
</main>
</body></html>
"""


def _figure(entry: Mapping) -> str:
    picture, counts = quote(entry["picture"]), entry.get("counts", {})
    total = sum(counts.values())
    details = ", ".join(
        f"{count} {escape(name)}" for name, count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    )
    lines = [f"<strong>{escape(entry['name'])}</strong>", f"{total} object{'' if total == 1 else 's'}"]
    if details:
        lines.append(f"<small>{details}</small>")
    if entry.get("explain"):
        lines.append(f'<a href="{quote(entry["explain"])}">what the network sees</a>')
    if entry.get("video"):
        shown = f'<video src="{picture}" controls preload="metadata"></video>'
        lines.append(f'<a href="{picture}">{escape(entry["picture"])}</a>')
    else:
        shown = f'<a href="{picture}"><img src="{picture}" alt="{escape(entry["name"])}" loading="lazy"></a>'
    return f"<figure>{shown}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def write_index(folder: str, entries: Sequence[Mapping], title: str, results: Optional[str] = "results.json") -> str:
    """
    Write ``index.html`` into the folder of the pictures.

    Args:
        folder: an existing folder; all names below are relative to it.
        entries: one mapping a picture: ``name`` (shown), ``picture`` (file), and optionally ``counts``
            (class name -> number of objects), ``explain`` (file) and ``video`` (True: the file is a video).
        title: heading of the page.
        results: the JSON file to link; None: no link.

    Returns:
        The path of the page.
    """
    summary = f"{len(entries)} picture{'' if len(entries) == 1 else 's'}"
    if results:
        summary += f' · <a href="{quote(results)}">{escape(results)}</a> (COCO results format)'
    page = PAGE.format(title=escape(title), summary=summary, figures="\n".join(map(_figure, entries)))
    path = os.path.join(folder, "index.html")
    write_bytes(path, page.encode("utf-8"))
    return path
