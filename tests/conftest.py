"""Small models run on one thread: processes side by side do not wait for each other, and sums are the same."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads(request):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if "slow" in request.keywords else 1)
    yield
    torch.set_num_threads(threads)
