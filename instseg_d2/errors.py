"""
The errors of this package. Each message is one sentence that names the file, key or argument and what would be right;
`console.run_script` shows it as one line on stderr.
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
    """A config file, override or argument that cannot be used; the message names it."""


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the file and the fault."""


class ImageError(DatasetError):
    """An image that is missing, broken or of another size than its annotation says."""


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message names it."""


class WorkerError(RuntimeError):
    """A process that the run needs has died or cannot hand over its work; the message says why."""


_MENDABLE = (
    ConfigError, DatasetError, CheckpointError, WorkerError, FloatingPointError,
    FileNotFoundError, PermissionError, NotADirectoryError,
)  # fmt: skip
_MENDABLE_ERRNO = {
    errno.ENOSPC: "make room where OUTPUT_DIR lies, or name another one",
    errno.EDQUOT: "make room where OUTPUT_DIR lies, or name another one",
    errno.EROFS: "name an OUTPUT_DIR that can be written",
    errno.EMFILE: "raise the limit (ulimit -n 4096) or lower DATALOADER.NUM_WORKERS",
}
# What PyTorch says of other processes, anywhere in the training: the first that matches.
_OF_PROCESSES = {
    r"^DataLoader worker .* signal: Bus error": "a worker of the data loader found no room in /dev/shm: make it larger "
    "(docker run --shm-size 2g) or set DATALOADER.NUM_WORKERS 0",
    r"^DataLoader worker .* signal: Killed": "a worker of the data loader was killed, most likely because the memory "
    "was full: lower DATALOADER.NUM_WORKERS or the size of the images",
    r"^DataLoader worker .*(signal: [\w ]+|exited unexpectedly)": "a worker of the data loader has died ({}): what it "
    "wrote above may say why, and DATALOADER.NUM_WORKERS 0 reads the images without workers",
    r"^Too many open files": "too many open files: raise the limit (ulimit -n 4096) or lower DATALOADER.NUM_WORKERS",
    r"Connection (?:closed|reset) by|Broken pipe|remote process exited": "another process of this run has ended: its "
    "own output says why",
}


def _of_a_process(error: BaseException) -> str:
    """The sentence for what PyTorch says of another process that has died; else nothing."""
    if not isinstance(error, RuntimeError) or isinstance(error, WorkerError):
        return ""
    said = f"{error.__cause__}\n{error}"  # the cause may know the signal
    matches = ((text, re.search(pattern, said, re.M)) for pattern, text in _OF_PROCESSES.items())
    return next((text.format(*found.groups()) for text, found in matches if found), "")


def is_user_error(error: BaseException) -> bool:
    """True for errors that need no traceback: config, data, weights, missing files, a full disk, a dead process."""
    if isinstance(error, OSError):
        return isinstance(error, _MENDABLE) or error.errno in _MENDABLE_ERRNO
    return isinstance(error, _MENDABLE) or bool(_of_a_process(error))


def sentence(error: BaseException) -> str:
    """The message of an error on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _MENDABLE_ERRNO:  # of a writer that knows its open file alone
        return f"{error.strerror}: {_MENDABLE_ERRNO[error.errno]}"
    text = _of_a_process(error) or str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:  # a DataLoader worker adds its traceback
        text = text.rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(text.split())
