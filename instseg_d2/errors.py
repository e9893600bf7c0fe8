"""
The errors of this package. Each message is one sentence that names the file, key or argument and the remedy;
`console.run_script` prints it as one line on stderr.
"""

import errno
import re

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "ImageError",
    "WorkerError",
    "is_user_error",
    "sentence",
]


class ConfigError(ValueError):
    """An invalid config file, override or argument; the message names it."""


class DatasetError(ValueError):
    """An unusable data set; the message names the file and the fault."""


class ImageError(DatasetError):
    """An image that is missing, broken, or not of the annotated size."""


class CheckpointError(ValueError):
    """An unusable weight file; the message names it."""


class WorkerError(RuntimeError):
    """A process of the run died or cannot send its result; the message says why."""


_USER_ERRORS = (
    ConfigError, DatasetError, CheckpointError, WorkerError, FloatingPointError,
    FileNotFoundError, PermissionError, NotADirectoryError,
)  # fmt: skip
_ERRNO_REMEDIES = {
    errno.ENOSPC: "free some space in OUTPUT_DIR, or choose another folder",
    errno.EDQUOT: "free some space in OUTPUT_DIR, or choose another folder",
    errno.EROFS: "set OUTPUT_DIR to a writable folder",
    errno.EMFILE: "raise the limit (ulimit -n 4096) or lower DATALOADER.NUM_WORKERS",
}
# Pattern in PyTorch's message about another process -> our sentence; the first match counts.
_PROCESS_ERRORS = {
    r"^DataLoader worker .* signal: Bus error": "a data loader worker ran out of shared memory (/dev/shm): enlarge it "
    "(docker run --shm-size 2g) or set DATALOADER.NUM_WORKERS 0",
    r"^DataLoader worker .* signal: Killed": "a data loader worker was killed, probably for lack of memory: lower "
    "DATALOADER.NUM_WORKERS or the image size",
    r"^DataLoader worker .*(signal: [\w ]+|exited unexpectedly)": "a data loader worker died ({}): see its output "
    "above, or set DATALOADER.NUM_WORKERS 0 to load images without workers",
    r"^Too many open files": "too many open files: raise the limit (ulimit -n 4096) or lower DATALOADER.NUM_WORKERS",
    r"Connection (?:closed|reset) by|Broken pipe|remote process exited": "another process of this run ended: see its "
    "own output",
}


def _process_error(error: BaseException) -> str:
    """Our sentence for PyTorch's error about another process that died; empty for any other error."""
    if not isinstance(error, RuntimeError) or isinstance(error, WorkerError):
        return ""
    message = f"{error.__cause__}\n{error}"  # the cause may name the signal
    matches = ((text, re.search(pattern, message, re.M)) for pattern, text in _PROCESS_ERRORS.items())
    return next((text.format(*found.groups()) for text, found in matches if found), "")


def is_user_error(error: BaseException) -> bool:
    """True for errors that need no traceback: config, data, weights, missing files, a full disk, a dead process."""
    if isinstance(error, OSError):
        return isinstance(error, _USER_ERRORS) or error.errno in _ERRNO_REMEDIES
    return isinstance(error, _USER_ERRORS) or bool(_process_error(error))


def sentence(error: BaseException) -> str:
    """The message of an error on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _ERRNO_REMEDIES:  # from an open file: no name
        return f"{error.strerror}: {_ERRNO_REMEDIES[error.errno]}"
    text = _process_error(error) or str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:  # a DataLoader worker adds its traceback
        text = text.rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(text.split())
