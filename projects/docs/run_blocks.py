"""
Runs the bash and Python blocks of README.md, of the methods' pages and of the documents, and the notebook.

Each document has a folder of its own, with small data under the names that the texts use (small_data.py), in which its
blocks run one after another. blocks.yaml says which commands run in a short form and which do not run, and why.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml

from instseg_d2.console import run_script

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOCUMENTS = ("README.md", "projects/docs/pages/**/*.md", "projects/*/README.md", "projects/*.md")
LANGUAGES = ("bash", "python")
NOT_RUN = ("text", "yaml")
TIMEOUT = 900  # seconds of a command, on a busy machine
# Runs own_data.py as a notebook, with the overrides that follow it.
NOTEBOOK = """
import os, sys, jupytext, nbclient
os.environ.update(INSTSEG_NOTEBOOK_DATA="datasets/mine", INSTSEG_NOTEBOOK_OVERRIDES=sys.argv[2])
notebook = jupytext.read(sys.argv[1])
try:
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
except nbclient.exceptions.CellExecutionError as error:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    sys.exit("".join(output.get("text", "") for output in outputs)[-2000:] + str(error)[-800:])
"""


class Step(NamedTuple):
    """A command, a Python block, or the notebook."""

    language: str
    text: str


def blocks(text: str) -> list[Step]:
    """
    The commands of the bash blocks, one by one, and the Python blocks.

    Raises:
        ValueError: a block has no language, or one that is not known.
    """
    steps = []
    for indent, language, content in re.findall(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", text, re.M | re.S):
        if language not in (*LANGUAGES, *NOT_RUN):
            raise ValueError(f"a code block has the language {language!r}; known are {', '.join(LANGUAGES + NOT_RUN)}.")
        content = re.sub(f"^{indent}", "", content, flags=re.M)
        if language == "python":
            steps.append(Step(language, content))
        elif language == "bash":
            lines = content.replace("\\\n", " ").splitlines()
            commands = [re.sub(r"\s+", " ", re.sub(r"(^|\s)\s*#\s.*", "", line)).strip() for line in lines]
            steps += [Step(language, command) for command in commands if command]
    return steps


def short_form(step: Step, rules: list[dict], used: set) -> tuple[str, str]:
    """
    What is run, and why nothing is (empty: it is run).

    Raises:
        ValueError: the text lacks what a rule replaces.
    """
    rule = next((rule for rule in rules if re.search(rule["find"], step.text)), {})
    used.add(rule.get("find"))
    text = step.text
    pairs = rule.get("replace", [])
    for old, new in zip(pairs[::2], pairs[1::2]):
        if old not in text:
            raise ValueError(f"{rule['find']}: {old!r} is not in {text!r}.")
        text = text.replace(old, new)
    if "append" in rule:
        text += f" {' '.join(map(shlex.quote, rule['append'].split()))}"
    return rule.get("before", "") + text, rule.get("skip", "")


def _command(language: str, text: str) -> list[str]:
    if language == "bash":
        return ["bash", "-c", text]
    if language == "python":
        return [sys.executable, "-c", text]
    name, _, overrides = text.partition(" ")
    return [sys.executable, "-c", NOTEBOOK, str(HERE / name), " ".join(shlex.split(overrides))]


def _run(command: list[str], folder: Path) -> str:
    """The end of what a failing command wrote; empty if it worked."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {TIMEOUT} s"
    return f"exit status {done.returncode}\n{done.stdout[-3000:]}" if done.returncode else ""


def _report(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def run_document(name: str, todo: list[tuple[Step, str, str]], folder: Path) -> int:
    """Run the steps of a document; returns how many fail. todo: each step, its short form, and why it is left out."""
    failures = 0
    for step, text, reason in todo:
        title = f"{name}: {step.text.strip().splitlines()[0]}"
        if reason:
            _report(f"left out  {title}", f"          {reason}")
            continue
        begin = time.perf_counter()
        problem = _run(_command(step.language, text), folder)
        failures += bool(problem)
        _report(f"{'FAILED' if problem else 'ran':<7}{time.perf_counter() - begin:4.0f} s  {title}")
        if problem:
            _report(f"as: {text}", problem)
    return failures


def plan() -> dict[str, list[tuple[Step, str, str]]]:
    """
    Document -> its steps, what is run for each, and why it is left out.

    Raises:
        ValueError: an entry of blocks.yaml fits nothing, or a block cannot be read.
    """
    rules = yaml.safe_load((HERE / "blocks.yaml").read_text(encoding="utf-8"))
    used = set()
    notebook = Step("notebook", "own_data.py")
    documents = {"projects/docs": [(notebook, *short_form(notebook, rules, used))]}
    for path in sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)}):
        steps = blocks(path.read_text(encoding="utf-8"))
        if steps:
            documents[str(path.relative_to(ROOT))] = [(step, *short_form(step, rules, used)) for step in steps]
    stale = [rule["find"] for rule in rules if rule["find"] not in used]
    if stale:
        raise ValueError(f"blocks.yaml: nothing fits {', '.join(stale)}; remove it.")
    return documents


def main(only: str = "") -> int:
    """Run every document, or those whose name contains a word; returns the exit status."""
    documents = {name: todo for name, todo in plan().items() if only in name}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        problem = _run([sys.executable, str(HERE / "small_data.py"), str(data)], ROOT)
        if problem:
            _report("small_data.py fails:", problem)
            return 1

        def folder(name: str) -> Path:
            path = Path(scratch) / re.sub(r"\W", "_", name)
            subprocess.run(["cp", "-r", str(data), str(path)], check=True)
            for shared in ("configs", "projects"):
                (path / shared).symlink_to(ROOT / shared)
            return path

        with ThreadPoolExecutor(max_workers=2) as pool:
            futures = [pool.submit(run_document, name, todo, folder(name)) for name, todo in documents.items()]
            failures = sum(future.result() for future in futures)
    left_out = sum(bool(reason) for todo in documents.values() for *_, reason in todo)
    steps = sum(map(len, documents.values()))
    _report(f"{steps} commands and Python blocks: {steps - left_out} run, {left_out} left out, {failures} failed")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(run_script(main, *sys.argv[1:2]))
