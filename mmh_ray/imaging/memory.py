"""The memory that a process may still take, on a bare machine and under the limit of a batch system or a container."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil


class _GroupFiles(NamedTuple):
    """Files of a control group with its limit and its use, and the entry of its `memory.stat` that counts what is only
    cache."""

    limit: str
    used: str
    cache: str


_V1 = _GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _GroupFiles("memory.max", "memory.current", "inactive_file")


def free_memory(groups_file: str | Path = "/proc/self/cgroup", mount: str | Path = "/sys/fs/cgroup") -> int:
    """Bytes that this process may still take: what the machine has free, or what its control groups leave (Slurm,
    Kubernetes), if less.

    Parameters
    ----------
    groups_file, mount:
        Where Linux says which groups a process is in, and where it shows them; elsewhere there are none.
    """
    left: list[float] = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError):
        for line in Path(groups_file).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            is_version_2 = not controllers
            if not is_version_2 and "memory" not in controllers.split(","):
                continue
            root = Path(mount) if is_version_2 else Path(mount, "memory")
            files = _V2 if is_version_2 else _V1
            group = PurePosixPath(path)
            for ancestor in (group, *group.parents):
                left.append(_left(root / str(ancestor).lstrip("/"), files))
    return int(max(0, min(left)))


def _left(group: Path, files: _GroupFiles) -> float:
    """Bytes that a group may still take; what has no limit, or is not shown inside a container, bounds nothing."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limit = int((group / files.limit).read_text())
        used = int((group / files.used).read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        counts = dict(line.split() for line in lines)
        cache = int(counts.get(files.cache, 0))
        return limit - used + cache
    return float("inf")
