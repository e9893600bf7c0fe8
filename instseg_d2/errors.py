"""
The errors of this package. Each message is one sentence that names the file, key or argument and what would be right;
`console.run_script` shows it as one line on stderr.
"""

import errno

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "ImageError",
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


_MENDABLE = (ConfigError, DatasetError, CheckpointError, FileNotFoundError, PermissionError, NotADirectoryError)
_MENDABLE_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_user_error(error: BaseException) -> bool:
    """True for what a message alone explains: config, data, weights, missing files, a full disk, a diverged loss."""
    if isinstance(error, OSError):
        return isinstance(error, _MENDABLE) or error.errno in _MENDABLE_ERRNO
    return isinstance(error, (*_MENDABLE, FloatingPointError))


def sentence(error: BaseException) -> str:
    """The message of an error on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _MENDABLE_ERRNO:  # of a writer that knows its open file alone
        return f"{error.strerror}: make room where OUTPUT_DIR lies, or name another one"
    text = str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:  # a DataLoader worker adds its traceback
        text = text.rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(text.split())
