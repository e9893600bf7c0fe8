"""What a recipe that configures itself knows of the machine."""

import pytest

from instseg_d2.engine.auto import this_machine
from instseg_d2.engine.auto.machine import free_memory


def test_a_job_that_runs_already(monkeypatch):
    """As of torchrun: two machines with four processes each, while the arguments say one."""
    alone = this_machine(0, 1, 1)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 8)
    monkeypatch.setattr("detectron2.utils.comm.get_local_size", lambda: 4)
    found = this_machine(0, 1, 1)
    assert (alone.processes, found.processes) == (1, 8)
    assert found.memory < 0.5 * alone.memory


@pytest.mark.parametrize(
    ("folder", "limit", "usage", "cached"),
    [
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ("", "memory.max", "memory.current", "inactive_file"),
    ],
)
def test_free_memory_of_a_container(tmp_path, folder, limit, usage, cached):
    """The machine has 16 GiB, the container 8, of which 3 are used, 1 of them for files; at first, no file says so."""
    gib = 2**30
    group = tmp_path / "sys/fs/cgroup" / folder
    for path in (tmp_path / "proc", group):
        path.mkdir(parents=True)
    assert free_memory(tmp_path) == 4
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {16 * 2**20} kB\n")
    assert free_memory(tmp_path) == 16
    (group / limit).write_text(f"{8 * gib}\n")
    (group / usage).write_text(f"{3 * gib}\n")
    assert free_memory(tmp_path) == 5
    (group / "memory.stat").write_text(f"cache {gib}\n{cached} {gib}\n")
    assert free_memory(tmp_path) == 6
    for unlimited in ("max", "9223372036854771712"):
        (group / limit).write_text(f"{unlimited}\n")
        assert free_memory(tmp_path) == 16
