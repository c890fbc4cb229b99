"""Many small tasks, a few at a time: what memory they take does not depend on how many there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray

from mmh_ray.progress import progress


class Done(NamedTuple):
    """An item with its task's result, or with the exception that is its alone.

    ``kept`` refers to what stays in Ray's object store (on disk where memory is short), for other tasks to use.
    """

    item: Any
    result: Any
    kept: ray.ObjectRef | None = None


def run_tasks(
    task: Callable, items: Sequence[Any], shared: Any, title: str, unit: str, keep: bool = False
) -> Iterator[Done]:
    """Run ``task(item, shared)`` for every item and yield what is done as it is done.

    Parameters
    ----------
    shared:
        Sent to the cluster once.
    keep:
        The task returns two things; only the first comes here, the second stays in the object store.
    """
    remote = ray.remote(num_cpus=1, num_returns=2 if keep else 1)(task)
    argument = ray.put(shared)
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, pending = iter(items), dict[Any, Any]()
    with progress(len(items), title, unit=unit) as advance:
        while True:
            for item in itertools.islice(waiting, limit - len(pending)):
                refs = remote.options(name=_name(title, item)).remote(item, argument)
                first, kept = refs if keep else (refs, None)
                pending[first] = (item, kept)
            if not pending:
                return
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            item, kept = pending.pop(ready)
            try:
                result = ray.get(ready)
            except Exception as error:  # it belongs to its item, not to the job
                result, kept = getattr(error, "cause", None) or error, None
            advance(1)
            yield Done(item, result, kept)


def _name(title: str, item: Any) -> str:
    """What the dashboard shows: of an image also which."""
    return f"{title} {item['image_id']}" if isinstance(item, dict) and "image_id" in item else title
