"""The memory that a process may still take, on a bare machine and under the limit of a batch system or a container."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

import psutil

_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_V2 = "memory.max", "memory.current", "inactive_file"
"""Files with the limit and the use of a control group, and the entry of its `memory.stat` that counts what is only cache, by version."""


def free_memory(own: str | Path = "/proc/self/cgroup", mount: str | Path = "/sys/fs/cgroup") -> int:
    """Bytes that this process may still take: what the machine has free, or what its control groups leave (Slurm, Kubernetes), if less.

    Parameters
    ----------
    own, mount:
        Where Linux says which groups a process is in, and where it shows them; elsewhere there are none.
    """
    left: list[float] = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError):
        for line in Path(own).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root, names = (Path(mount, "memory"), _V1) if controllers else (Path(mount), _V2)
            if not controllers or "memory" in controllers.split(","):
                group = PurePosixPath(path)
                left += [_left(root / str(above).lstrip("/"), *names) for above in (group, *group.parents)]
    return int(max(0, min(left)))


def _left(group: Path, limit: str, used: str, cache: str) -> float:
    """Bytes that a group may still take; what has no limit, or is not shown inside a container, bounds nothing."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        most, taken = (int((group / name).read_text()) for name in (limit, used))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - taken + int(stat.get(cache, 0))
    return float("inf")
