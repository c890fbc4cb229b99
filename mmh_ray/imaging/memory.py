"""Finds how much memory a process may still use, including limits of a batch system or a container."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil


class _GroupFiles(NamedTuple):
    """Names of a control group's files for its limit and usage, and of the cache entry in its `memory.stat`."""

    limit: str
    used: str
    cache: str


_V1 = _GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _GroupFiles("memory.max", "memory.current", "inactive_file")


def free_memory(groups_file: str | Path = "/proc/self/cgroup", mount: str | Path = "/sys/fs/cgroup") -> int:
    """Bytes that this process may still use: the machine's free memory, or less if its control groups have a limit.

    Slurm and Kubernetes limit memory by control groups.

    Parameters
    ----------
    groups_file, mount:
        Where Linux lists the groups of a process, and where it shows them; other systems have neither.
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
    """Bytes that a group may still use; infinity if it has no limit or is not visible inside a container."""
    with contextlib.suppress(OSError, ValueError):  # "max" is not a number
        limit = int((group / files.limit).read_text())
        used = int((group / files.used).read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        counts = dict(line.split() for line in lines)
        cache = int(counts.get(files.cache, 0))
        return limit - used + cache
    return float("inf")
