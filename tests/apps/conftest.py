"""Fixtures of the tests of applications."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before
