"""Fixtures of the tests of applications."""

from tests.scripts import restore_logging  # noqa: F401 (a fixture)
