"""The actors of the batch job: who has which image and since when, and what becomes of an image that kills or stops its actor."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from mmh_ray.errors import DataError

Row = dict[str, Any]

ATTEMPTS = 2
"""Times an image is tried when the worker that had it died."""
STARTING_S = 600.0
"""Seconds that a run waits at least for a place for its actors; a cluster may have to grow first."""
ENDING_S = 20.0
"""Seconds that a run that is through waits for actors that start still, so that they end by themselves."""
STARTS = 3
"""Workers that may fail to start one after the other before no further one is started."""


class _Task(NamedTuple):
    actor: Any
    row: Row
    since: float


class Crew:
    """Hands images to actors as they come free; what befalls one image or one actor costs the others at most an attempt.

    Parameters
    ----------
    hire:
        Starts an actor with a method ``harmonize(row)``.
    size, abreast:
        Actors to start, and images that each has at a time.
    timeout_s:
        Seconds that an image may take.
    failed:
        The rows of an image that failed for a reason.
    """

    def __init__(
        self,
        hire: Callable[[], Any],
        size: int,
        abreast: int,
        timeout_s: float,
        failed: Callable[[Row, str], list[Row]],
    ) -> None:
        self._hire, self._size, self._abreast, self._timeout, self._failed = hire, size, abreast, timeout_s, failed
        self._waiting: deque[Row] = deque()
        self._starting: dict[ray.ObjectRef, tuple[Any, float]] = {}
        self._ready: list[Any] = []
        self._busy: dict[ray.ObjectRef, _Task] = {}
        self._attempts: Counter[str] = Counter()
        self._bad_starts: list[RayError] = []

    def run(
        self,
        rows: Iterable[Row],
        ready: Callable[[], object] = lambda: None,
        queue: Callable[[int], object] = lambda images: None,
    ) -> Generator[list[Row]]:
        """Ledger rows of the images as they finish; whoever stops before the last of them closes this, which ends the actors.

        On a cluster that stands they would go on writing to a folder that is another run's by then.

        Parameters
        ----------
        ready:
            Called whenever an actor has come up.
        queue:
            Told how many images no actor has yet.
        """
        self._waiting.extend(rows)
        try:
            for _ in range(self._size):
                self._start()
            while self._waiting or self._busy:
                self._hand_out()
                queue(len(self._waiting))
                watched = [*self._busy, *self._starting]
                finished = ray.wait(watched, timeout=self._patience())[0] if watched else []
                if not finished and not self._busy:
                    yield from self._give_up()
                elif not finished:
                    yield from self._overdue()
                elif finished[0] in self._starting:
                    if self._started(finished[0]):
                        ready()
                else:
                    yield from self._finished(finished[0])
            self._let_go()
        finally:
            queue(0)
            for actor in (*self._ready, *(actor for actor, _ in self._starting.values())):
                ray.kill(actor)

    def _start(self) -> None:
        actor = self._hire()
        self._starting[actor.__ray_ready__.remote()] = (actor, time.monotonic())

    def _let_go(self) -> None:
        """Forget the actors, which ends them.

        One that is killed while it starts would stand as FAILED on the dashboard of a run that succeeded.
        """
        starting = list(self._starting)
        came_up = ray.wait(starting, num_returns=len(starting), timeout=ENDING_S)[0] if starting else []
        for ref in came_up:
            del self._starting[ref]
        self._ready.clear()

    def _started(self, ref: ray.ObjectRef) -> bool:
        """Take up an actor that is ready, or start another for it; says whether it is."""
        actor, _ = self._starting.pop(ref)
        try:
            ray.get(ref)
        except RayError as error:
            self._bad_starts.append(error)
            if len(self._bad_starts) < STARTS:
                self._start()
            return False
        self._ready.append(actor)
        self._bad_starts.clear()
        return True

    def _hand_out(self) -> None:
        for actor in self._ready * self._abreast:
            if self._waiting and self._may_start(actor):
                row = self._waiting.popleft()
                call = actor.harmonize.options(name=f"harmonize {row['image_id']}")
                self._busy[call.remote(row)] = _Task(actor, row, time.monotonic())

    def _may_start(self, actor: Any) -> bool:
        """An image whose worker died works alone: if that one dies too, no other image is to blame, nor to pay."""
        held = [task.row for task in self._busy.values() if task.actor is actor]
        suspects = [row for row in (*held, self._waiting[0]) if self._attempts[row["image_id"]]]
        return len(held) < (1 if suspects else self._abreast)

    def _patience(self) -> float:
        """Seconds until the first image is overdue; with none under way, until no actor is likely to start any more."""
        if self._busy:
            until = min(task.since for task in self._busy.values()) + self._timeout
        else:
            until = max(since for _, since in self._starting.values()) + STARTING_S
        return max(0.0, until - time.monotonic())

    def _finished(self, ref: ray.ObjectRef) -> Iterator[list[Row]]:
        task = self._busy.pop(ref)
        try:
            rows = ray.get(ref)
        except RayError as error:  # the actor died, of a signal, of memory, with its node: it gave no row of its own
            self._replace(task.actor)
            received = f"the worker died {ATTEMPTS} times on this image ({error})"
            remedy = "Use fewer harmonize.slots or a larger machine if memory ran out; else try the image alone."
            yield from self._again(task.row, str(DataError(received, "a worker that finishes it", remedy)))
        else:
            yield rows

    def _overdue(self) -> Iterator[list[Row]]:
        """End the actor of the image that takes longest; an image that was alone there is to blame, another is tried again, alone."""
        ref, task = min(self._busy.items(), key=lambda item: item[1].since)
        del self._busy[ref]
        alone = all(other.actor is not task.actor for other in self._busy.values())
        self._replace(task.actor)
        remedy = "Raise harmonize.timeout_s if images may take longer."
        reason = str(DataError(f"not done after {self._timeout:g} s", "an image done by then", remedy))
        if alone:
            yield self._failed(task.row, reason)
        else:
            yield from self._again(task.row, reason)

    def _again(self, row: Row, reason: str) -> Iterator[list[Row]]:
        self._attempts[row["image_id"]] += 1
        if self._attempts[row["image_id"]] < ATTEMPTS:
            self._waiting.appendleft(row)
        else:
            yield self._failed(row, reason)

    def _replace(self, actor: Any) -> None:
        """Another actor for one that is dead or to be ended; once, however many images it had."""
        if actor in self._ready:
            self._ready.remove(actor)
            ray.kill(actor)
            self._start()

    def _give_up(self) -> Iterator[list[Row]]:
        resources = ray.available_resources()
        received = (
            f"no worker could be started within {STARTING_S:g} s with {resources.get('CPU', 0):g} CPUs and "
            f"{resources.get('GPU', 0):g} GPUs free"
        )
        if self._bad_starts:
            received = f"no worker could be started ({self._bad_starts[-1]})"
        reason = str(DataError(received, "a place for one", "Run again when the cluster has recovered."))
        while self._waiting:
            yield self._failed(self._waiting.popleft(), reason)
