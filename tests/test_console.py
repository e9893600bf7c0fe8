"""Consoles that cannot encode, are closed or broken, and users without a name or a home folder."""

import ast
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instseg_d2 import files
from instseg_d2.console import is_terminal, keep_console, run_script
from instseg_d2.errors import ConfigError

ROOT = Path(__file__).parents[1]
# Only the package's console, without PyTorch, which takes seconds to import.
CONSOLE = f"""
import sys, types
package = types.ModuleType("instseg_d2")
package.__path__ = [{str(ROOT / "instseg_d2")!r}]
sys.modules["instseg_d2"] = package
from instseg_d2.console import keep_console, run_script
"""


def run(code, redirect="", **env):
    """Exit status, standard output and error (bytes) of a Python process that a shell starts."""
    command = f'"$0" -c "$1" {redirect}'
    env = {**os.environ, **env}
    done = subprocess.run(["sh", "-c", command, sys.executable, CONSOLE + code], env=env, capture_output=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("cp1252", b"na\xefve \\u65e5\\u672c \\udce9"), ("ascii", b"na\\xefve \\u65e5\\u672c \\udce9"),
     ("utf-8", b"na\xc3\xafve \xe6\x97\xa5\xe6\x9c\xac \\udce9")],
)  # fmt: skip
def test_what_a_console_cannot_show_is_escaped(encoding, shown):
    """Also file names that are not UTF-8, on both streams."""
    code = r"""
text = "na\xefve \u65e5\u672c \udce9"
def main():
    print(text)
    print(text, file=sys.stderr)
sys.exit(run_script(main))
"""
    assert run(code, PYTHONIOENCODING=encoding) == (0, shown + b"\n", shown + b"\n")


def test_a_closed_console(tmp_path):
    """Output is dropped, and never lands in a file that got the number of the closed stream."""
    code = f"""
import os
def main():
    with open({str(tmp_path / "log.txt")!r}, "w") as log:
        log.write("log")
        log.flush()
        print("to nobody", flush=True)
        os.write(1, b"by a library")
        os.write(2, b"by a library")
    return int(sys.stdout.isatty())
sys.exit(run_script(main))
"""
    for redirect in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        assert run(code, redirect)[0] == 0
        assert (tmp_path / "log.txt").read_text() == "log"


def test_a_pipe_that_nobody_reads(tmp_path):
    """The run completes silently, with its own exit status."""
    code = f"""
def main():
    for _ in range(20000):
        print("much more than the pipe holds")
        print("also here", file=sys.stderr)
    open({str(tmp_path / "done")!r}, "w").close()
    return 5
status = run_script(main)
open({str(tmp_path / "status")!r}, "w").write(str(status))
sys.exit(status)
"""
    run(code, f"2>{tmp_path}/errors | head -n 1")
    assert (tmp_path / "done").exists()
    assert (tmp_path / "status").read_text() == "5"
    assert set((tmp_path / "errors").read_text().splitlines()) == {"also here"}
    (tmp_path / "status").unlink()
    run(code, "2>&1 | true")
    assert (tmp_path / "status").read_text() == "5"


def test_other_console_errors_are_raised():
    """A full disk under ``> file`` is an error, not a closed console."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    code, _, errors = run("sys.exit(run_script(print, 'x', 'y'))", ">/dev/full")
    assert code != 0
    assert os.strerror(errno.ENOSPC).encode() in errors


def test_streams_of_a_notebook_stay(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    keep_console()
    assert sys.stdout is stream
    monkeypatch.setattr(sys, "stdout", None)
    assert not is_terminal()


def test_exit_status(capsys, monkeypatch):
    def fails():
        raise ConfigError("a key is\nwrong")

    def stopped():
        raise KeyboardInterrupt

    monkeypatch.delenv("INSTSEG_DEBUG", raising=False)
    assert [run_script(main) for main in (lambda: None, lambda: 3, fails, stopped)] == [0, 3, 2, 130]
    assert capsys.readouterr().err == "error: a key is wrong\nstopped by the user\n"


def scripts():
    yield ROOT / "instseg_d2/commands/__init__.py"  # whose main and run others call
    paths = [*(ROOT / "instseg_d2").rglob("*.py"), *(ROOT / "projects").rglob("*.py")]
    own = [path for path in paths if '__name__ == "__main__"' in path.read_text()]
    yield from (path for path in own if path.name not in ("get_detectron2.py", "operators.py"))  # alone; a benchmark


@pytest.mark.parametrize("path", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_goes_through_run_script(path):
    """So no command stops because of its console."""
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    called = {call.func.id for call in calls}
    assert "run_script" in called or (called & {"main", "run"} and "commands import" in path.read_text())


# --- users ---


def test_a_user_without_name_and_home(tmp_path):
    """As with ``docker run --user``: the package imports, a command works, and no folder named ~ is created."""
    code = """
import os, pwd, runpy, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
sys.argv = ["zoo", "--method", "FCOS"]
try:
    runpy.run_module("instseg_d2.zoo", run_name="__main__")
except SystemExit as end:
    from instseg_d2.files import cache_folder
    print(cache_folder("x"), os.environ["HOME"], end.code)
"""
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "INSTSEG_CACHE", "TORCHINDUCTOR_CACHE_DIR")
    env = {key: value for key, value in os.environ.items() if key not in names}
    env.update(TMPDIR=str(tmp_path), PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    home = tmp_path / f"instseg_d2_{os.getuid()}"
    assert done.stdout.splitlines()[-1] == f"{home}/.cache/instseg_d2/x {home} 0", done.stderr
    assert done.stderr.splitlines() == [
        f"The home folder is not writable: cached files go to {home}, or where INSTSEG_CACHE points."
    ]
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("kind", ["missing", "forbidden", "writable", "writable cache", "named"])
def test_where_the_cache_lies(tmp_path, monkeypatch, caplog, kind):
    """If home is not writable, like a container user's /, a temporary one is used."""
    files.temporary_home.cache_clear()
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.delenv("INSTSEG_CACHE", raising=False)
    home = tmp_path / "home"
    if kind != "missing":
        (home / ".cache").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home) if kind != "missing" else "relative")
    allowed = {"forbidden": [], "writable": [str(home), str(home / ".cache")], "writable cache": [str(home / ".cache")]}
    monkeypatch.setattr(files.os, "access", lambda path, mode: path in allowed.get(kind, []))
    if kind == "named":
        monkeypatch.setenv("INSTSEG_CACHE", "~/mine")
    expected = {"named": home / "mine" / "x"}
    if kind.startswith("writable"):
        expected[kind] = home / ".cache" / "instseg_d2" / "x"
    substitute = tmp_path / "tmp" / f"instseg_d2_{os.getuid()}" / ".cache" / "instseg_d2" / "x"
    assert [files.cache_folder("x"), files.cache_folder("x")] == [expected.get(kind, substitute)] * 2
    assert len(caplog.records) == (kind in ("missing", "forbidden"))
    files.temporary_home.cache_clear()
