"""
What the site takes from elsewhere in the repository: README.md as its first page, the methods' pages, the measured
results, the pictures, the notebook, and the references. Links are those of the repository; here they are translated.
"""

import logging
import posixpath
import re
import sys
import warnings
from pathlib import Path

import jupytext
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

with warnings.catch_warnings():  # those of PyTorch
    warnings.simplefilter("ignore")
    from projects.docs.reference import commands, config_keys, python_names

GENERATED = {"commands": commands.render, "config keys": config_keys.render, "python": python_names.render}
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
LOADED = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\ssrc="https?:[^"]*"|<link\b[^>]*\shref="https?:[^"]*"')
METHODS = sorted(ROOT.glob("projects/*/README.md"))


def _outside() -> dict[str, str]:
    """Path in the repository -> path in the site."""
    pages = {page.relative_to(ROOT).as_posix(): f"methods/{page.parent.name}.md" for page in METHODS}
    pictures = sorted(ROOT.glob("projects/pictures/*"))
    return {
        "README.md": "index.md",
        "projects/benchmarks.md": "measured.md",
        "projects/docs/own_data.py": "notebook.md",
        **pages,
        **{picture.relative_to(ROOT).as_posix(): f"pictures/{picture.name}" for picture in pictures},
    }


def _notebook(path: Path) -> str:
    """A notebook's text and code; its outputs are those of whoever runs it."""
    return "\n\n".join(
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in jupytext.read(path).cells
    )


log = logging.getLogger("mkdocs.hooks.instseg_d2")  # MkDocs counts its warnings


def on_config(config):
    entry = next(entry for entry in config.nav if "Methods" in entry)
    entry["Methods"] = [{page.parent.name: f"methods/{page.parent.name}.md"} for page in METHODS]
    return config


def on_files(files, config):
    for source, target in _outside().items():
        if source.endswith(".py"):
            files.append(File.generated(config, target, content=_notebook(ROOT / source)))
        else:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    outside = _outside()
    here = next((source for source, target in outside.items() if target == page.file.src_uri), None)
    here = here or f"projects/docs/pages/{page.file.src_uri}"

    def translated(match: re.Match) -> str:
        picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        in_site = outside.get(path, path.removeprefix("projects/docs/pages/"))
        if files.get_file_from_path(in_site) is None:
            if not picture and (ROOT / path).exists():  # a source file: the site has none
                return text if "`" in text or text == path else f"{text} (`{path}`)"
            return match[0]  # MkDocs warns
        return f"{picture}[{text}]({posixpath.relpath(in_site, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    markdown = LINK.sub(translated, markdown)
    return re.sub(r"<!-- generated: (.*?) -->", lambda match: GENERATED[match[1]](), markdown)


def on_post_page(output, page, config):
    for match in LOADED.finditer(output):
        log.warning(f"{page.file.src_uri} loads from the network: {match[0]}")
    return output
