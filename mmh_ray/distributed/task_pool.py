"""Runs many small tasks on Ray, a few at a time, so that memory does not grow with their number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray

from mmh_ray.progress import progress


class TaskResult(NamedTuple):
    """An item with the result of its task, or with the task's exception.

    ``kept`` refers to a second result in Ray's object store (on disk if memory is short), for use by other tasks.
    """

    item: Any
    result: Any
    kept: ray.ObjectRef | None = None


def map_unordered(
    task: Callable, items: Sequence[Any], shared: tuple[Any, ...], title: str, unit: str, keep: bool = False
) -> Iterator[TaskResult]:
    """Run ``task(item, *shared)`` for every item and yield results in the order in which tasks end.

    Two tasks per CPU are submitted at a time: one runs, and the next is ready.

    Parameters
    ----------
    shared:
        Further arguments of all tasks, sent to the cluster once.
    title, unit:
        For the progress bar.
    keep:
        The task returns two values; the second one stays in the object store.
    """
    remote_task = ray.remote(num_cpus=1, num_returns=2 if keep else 1)(task)
    shared_references = [ray.put(argument) for argument in shared]
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(items)
    pending: dict[ray.ObjectRef, tuple[Any, ray.ObjectRef | None]] = {}
    with progress(len(items), title, unit=unit) as advance:
        while True:
            for item in itertools.islice(waiting, limit - len(pending)):
                named_task = remote_task.options(name=_name(title, item))
                references = named_task.remote(item, *shared_references)
                result_reference, kept = references if keep else (references, None)
                pending[result_reference] = (item, kept)
            if not pending:
                return
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            item, kept = pending.pop(ready)
            try:
                result = ray.get(ready)
            except Exception as error:  # fails the item, not the job
                result = getattr(error, "cause", None) or error
                kept = None
            advance(1)
            yield TaskResult(item, result, kept)


def _name(title: str, item: Any) -> str:
    """Name of a task on the dashboard, with the image if there is one."""
    image_id = item.get("image_id") if isinstance(item, dict) else getattr(item, "image_id", None)
    return f"{title} {image_id}" if image_id else title
