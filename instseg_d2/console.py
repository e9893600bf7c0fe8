"""Shared by all commands: a console that cannot stop a run, a home folder, and errors as one line."""

import contextlib
import errno
import io
import os
import signal
import sys
from typing import Callable

from .errors import is_user_error, sentence
from .files import temporary_home

__all__ = ["is_terminal", "keep_console", "run_script"]

# Errors of a closed pipe (EINVAL on Windows) and of a closed terminal.
_GONE = (errno.EPIPE, errno.EINVAL, errno.EIO)


def is_terminal() -> bool:
    """True if a person is watching standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


class _Console(io.FileIO):
    """Drops what is written to a closed console."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return len(data)


def keep_console() -> None:
    """
    Make standard output and error safe to write to: text to closed streams and broken pipes is dropped, and characters
    that the console cannot show are escaped. Streams replaced by a notebook or a test are left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get this number, and what libraries print
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
        elif stream is getattr(sys, f"__{name}__"):
            with contextlib.suppress(OSError):
                stream.flush()
            stream.reconfigure(errors="backslashreplace")
            if type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO:  # not a Windows console
                raw = _Console(stream.fileno(), "w", closefd=False)
                setattr(
                    sys,
                    name,
                    io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=True),
                )


def run_script(main: Callable, *args) -> int:
    """
    Call ``main(*args)``; user errors become one line on stderr.

    Returns:
        Exit code: what ``main`` returns (None: 0), 2 after a user error, 130 after Ctrl-C. With INSTSEG_DEBUG=1 errors
        are raised.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # so that Ctrl-C during imports prints no traceback
        signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_console()
    if not os.path.isabs(os.path.expanduser("~")):  # otherwise libraries create a folder named ~
        os.environ["HOME"] = str(temporary_home())
    try:
        return main(*args) or 0
    except KeyboardInterrupt:
        sys.stderr.write("stopped by the user\n")
        return 130
    except Exception as error:
        if os.environ.get("INSTSEG_DEBUG") == "1" or not is_user_error(error):
            raise
        sys.stderr.write(f"error: {sentence(error)}\n")
        return 2
