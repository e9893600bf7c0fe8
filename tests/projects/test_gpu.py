"""What is measured on a GPU: a dry run of all steps, and that a failure stops neither the others nor goes unseen."""

import io
import os
import subprocess
import sys

from projects.benchmarks import gpu
from projects.benchmarks.report import Report
from tests.scripts import ROOT


def run(*arguments, **variables):
    command = [str(ROOT / "projects" / "benchmarks" / "gpu.sh"), *map(str, arguments)]
    variables = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)


def test_dry_run(tmp_path):
    done = run("--dry-run", tmp_path)
    logs = "".join(path.read_text() for path in (tmp_path / "logs").glob("*.log"))
    report = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 0, logs
    assert report.startswith("# No GPU (dry run)\n")
    titles = [line for line in report.splitlines() if line.startswith("#")][1:]
    assert titles == ["## Operators", "## Stages", "## Training", "## Learning", "## Compiled", "## Steps"]
    assert {"blend_masks", "mask_prob", "assemble_instances"} <= {
        line.split(" | ")[0][2:] for line in report.splitlines()
    }
    assert "| instseg predict, quick BlendMask |" in report
    assert "| --batch 2 |" in report
    assert "| dry run | done |" in report
    assert "failed" not in report


def test_a_step_that_fails_is_named(tmp_path):
    done = run("--dry-run", tmp_path, PYTHON="false")
    assert done.returncode == 1
    assert "| dry run | failed, see " in (tmp_path / "gpu.md").read_text()


PRETENDER = """#!/usr/bin/env bash
case "$*" in
"-m pytest "*) echo "2 failed" && exit 3 ;;
*" stages") echo "| half a table |" >>"$4" && exit 1 ;;
"-m projects.benchmarks.gpu "*) echo "## ${@: -1}" >>"$4" ;;
esac
"""


def test_all_steps(tmp_path):
    """With a program in the place of Python that finds a GPU, but fails in two steps."""
    program = tmp_path / "pretender"
    program.write_text(PRETENDER)
    program.chmod(0o755)
    done = run(tmp_path / "out", INSTSEG_NO_INSTALL="1", PYTHON=str(program))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("steps that failed: 2")
    report = (tmp_path / "out" / "gpu.md").read_text()
    first, steps = report.split("## Steps")
    assert first == "## machine\n## operators\n| half a table |\n## training\n## learning\n## exported\n## compiled\n"
    outcomes = {line.split(" | ")[0][2:]: line.split(" | ")[1] for line in steps.splitlines()[4:]}
    assert outcomes.pop("CUDA tests").startswith("failed, see ")
    assert outcomes.pop("stages of inference").startswith("failed, see ")
    outcomes.pop("compute-sanitizer")
    assert set(outcomes.values()) == {"done"}
    assert len(outcomes) == 6
    assert "2 failed" in (tmp_path / "out" / "logs" / "CUDA_tests.log").read_text()


def test_a_machine_without_a_gpu(tmp_path):
    done = run(tmp_path, INSTSEG_NO_INSTALL="1", PYTHON="false")
    assert (done.returncode, done.stderr) == (1, "false finds no GPU; --dry-run tries this script on a CPU.\n")


def test_a_section_that_fails_does_not_stop_the_next(tmp_path, monkeypatch):
    def broken(args, report):
        """Breaks."""
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setitem(gpu.SECTIONS, "broken", broken)
    path = tmp_path / "report.md"
    assert gpu.main(["--dry-run", "--output", str(path), "broken", "machine"]) == 1
    assert "## Broken\n\nBreaks.\n\nFailed: out of memory\n" in path.read_text()
    assert "# No GPU (dry run)" in path.read_text()


def test_a_row_that_fails_does_not_stop_the_next():
    report = Report(io.StringIO())

    def measure(value):
        yield "inverse", 1 / value

    report.table(["name", "what", "value"], report.each([("two", 2.0), ("zero", 0.0), ("three", 3.0)], measure))
    assert report.failures == 1
    rows = report.file.getvalue().splitlines()[2:5]
    assert rows == [
        "| two | inverse | 0.5 |",
        "| zero | failed: float division by zero |",
        "| three | inverse | 0.333 |",
    ]
