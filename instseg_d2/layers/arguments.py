"""Checks of a module's arguments."""

from collections.abc import Sequence


def check_choice(argument: str, value: str, allowed: Sequence[str]) -> None:
    """
    Check an argument that has a few allowed values.

    Raises:
        ValueError: the value is not allowed; the message names the argument.
    """
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(allowed)}")
