"""Free memory is that of the tightest control group above the process, whatever their version."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mmh_ray.imaging.memory import free_memory

pytestmark = pytest.mark.fast

GIB = 2**30


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GiB free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))


def group(folder: Path, limit: str, used: int, cache: int, *, v1: bool = False) -> None:
    """The files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    for name, text in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(text + "\n")
    (folder / "memory.stat").write_text(f"anon 1\n{'total_' * v1}inactive_file {cache}\n")


@pytest.mark.parametrize("v1", [False, True])
def test_the_limit_of_a_job_counts_though_its_step_has_none(tmp_path: Path, v1: bool) -> None:
    """As Slurm sets it: 16 GiB for the job, of which 10 are in use, 3 of them only cache."""
    own, mount = tmp_path / "cgroup", tmp_path / "fs"
    job = mount / ("memory" if v1 else "") / "slurm/job_7"
    group(job / "step_0", str(2**63 - 4096) if v1 else "max", 5 * GIB, 0, v1=v1)
    group(job, str(16 * GIB), 10 * GIB, 3 * GIB, v1=v1)
    kind = "4:cpu,memory" if v1 else "0:"
    own.write_text(f"1:name=systemd:/\n{kind}:/slurm/job_7/step_0\n")
    assert free_memory(own, mount) == 9 * GIB


def test_a_container_that_shows_only_its_own_group(tmp_path: Path) -> None:
    """The path is the host's, the files are at the root."""
    (tmp_path / "cgroup").write_text("3:memory:/kubepods/pod5/abc\n")
    group(tmp_path / "memory", str(4 * GIB), 5 * GIB, 0, v1=True)
    assert free_memory(tmp_path / "cgroup", tmp_path) == 0


def test_without_control_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "cgroup", tmp_path) == 64 * GIB
    (tmp_path / "cgroup").write_text("0::/\n")
    assert free_memory(tmp_path / "cgroup", tmp_path) == 64 * GIB
