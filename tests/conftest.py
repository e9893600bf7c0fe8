"""
Tests use one thread, so that parallel processes do not wait for each other and sums are reproducible. Slow tests come
first, so that parallel processes (``pytest -n``) end together; without ``-n`` they get all threads.
"""

import os

SHARED = "PYTEST_XDIST_WORKER" in os.environ
if SHARED:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of programs that tests start

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(autouse=True)
def _threads(request):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if "slow" in request.keywords and not SHARED else 1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Captured text may contain file names that are not UTF-8, which pytest-xdist cannot send."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
