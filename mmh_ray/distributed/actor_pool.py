"""The actors of the batch job: who has which image and since when, and what becomes of an image that kills or stops its actor.

By hand, because Ray Data has neither a time limit per image nor isolation of the image that killed an actor.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorDiedError, RayError

from mmh_ray.bids.rows import LedgerRow, Problem
from mmh_ray.errors import DataError
from mmh_ray.harmonization.job import Task

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""Times an image is tried when the worker that had it died."""
LOST_NODES = 5
"""Nodes that may be lost under an image. Machines that are cheap because they may go at any time are not the image's fault; one that takes
its node's memory may be."""
SILENT_S = 30.0
"""Seconds without any actor after which a run says what it waits for."""
ENDING_S = 20.0
"""Seconds that a run that is through waits for actors that start still, so that they end by themselves."""
STARTS = 3
"""Workers that may fail to start one after the other before no further one is started."""


class _Running(NamedTuple):
    """An image that an actor has, and since when."""

    actor: Any
    task: Task
    since: float


class _Starting(NamedTuple):
    """An actor that is starting, and since when."""

    actor: Any
    since: float


class ActorPool:
    """Hands images to actors as they come free; what befalls one image or one actor costs the others at most an attempt.

    Parameters
    ----------
    start_actor:
        Starts an actor with a method ``harmonize(task)``.
    size:
        Actors to start.
    images_per_actor:
        Images that each actor has at a time at most.
    timeout_s:
        Seconds that an image may take.
    wait_s:
        Seconds that a run without any actor waits for one; a cluster may have to grow first.
    place:
        Says what an actor needs, and what the cluster has, for the log and for the reason of images that got none.
    failed:
        The ledger rows of an image that failed with a problem.
    """

    def __init__(
        self,
        start_actor: Callable[[], Any],
        size: int,
        images_per_actor: int,
        timeout_s: float,
        wait_s: float,
        place: Callable[[], str],
        failed: Callable[[Task, Problem], list[LedgerRow]],
    ) -> None:
        self._start_actor = start_actor
        self._size = size
        self._images_per_actor = images_per_actor
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._place = place
        self._is_told = False
        self._failed = failed
        self._waiting: deque[Task] = deque()
        self._starting: dict[ray.ObjectRef, _Starting] = {}
        self._ready: list[Any] = []
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._deaths: Counter[str] = Counter()
        self._lost_nodes: Counter[str] = Counter()
        self._bad_starts: list[RayError] = []

    def run(
        self,
        tasks: Iterable[Task],
        on_actor_ready: Callable[[], object] = lambda: None,
        on_queue: Callable[[int], object] = lambda images: None,
    ) -> Generator[list[LedgerRow]]:
        """Ledger rows of the images as they finish. Close the generator to stop the actors.

        On a cluster that stands they would otherwise go on writing to a folder that is another run's by then.

        Parameters
        ----------
        on_actor_ready:
            Called whenever an actor has come up.
        on_queue:
            Told how many images no actor has yet.
        """
        self._waiting.extend(tasks)
        try:
            for _ in range(self._size):
                self._start()
            while self._waiting or self._running:
                self._hand_out()
                on_queue(len(self._waiting))
                ref = self._next_event()
                if ref is not None and ref in self._starting:
                    if self._started(ref):
                        on_actor_ready()
                elif ref is not None:
                    yield from self._finished(ref)
                elif self._running:
                    yield from self._overdue()
                elif self._starting and self._seconds_to_start() > 0:
                    self._tell()
                else:
                    yield from self._give_up()
            self._forget_actors()
        finally:
            on_queue(0)
            for actor in self._ready:
                ray.kill(actor)
            self._end_starting()

    def _next_event(self) -> ray.ObjectRef | None:
        """An image that is finished, or an actor that has started or failed to; None if nothing came within the time."""
        watched = [*self._running, *self._starting]
        if not watched:
            return None
        finished, _ = ray.wait(watched, timeout=self._seconds_to_wait())
        return finished[0] if finished else None

    def _start(self) -> None:
        actor = self._start_actor()
        self._starting[actor.__ray_ready__.remote()] = _Starting(actor, time.monotonic())

    def _forget_actors(self) -> None:
        """Forget the actors, which ends them.

        One that is killed while it starts would stand as FAILED on the dashboard of a run that succeeded.
        """
        refs = list(self._starting)
        if refs:
            came_up, _ = ray.wait(refs, num_returns=len(refs), timeout=ENDING_S)
            for ref in came_up:
                del self._starting[ref]
        self._ready.clear()

    def _started(self, ref: ray.ObjectRef) -> bool:
        """Take up an actor that is ready, or start another for it; says whether it is."""
        actor = self._starting.pop(ref).actor
        try:
            ray.get(ref)
        except RayError as error:
            if not _is_node_lost(error):
                self._bad_starts.append(error)
            if len(self._bad_starts) < STARTS:
                self._start()
            return False
        self._ready.append(actor)
        self._bad_starts.clear()
        return True

    def _hand_out(self) -> None:
        """Give waiting images to actors, one to each in turn."""
        for actor in self._ready * self._images_per_actor:
            if self._waiting and self._may_have_another(actor):
                task = self._waiting.popleft()
                call = actor.harmonize.options(name=f"harmonize {task['image_id']}")
                self._running[call.remote(task)] = _Running(actor, task, time.monotonic())

    def _may_have_another(self, actor: Any) -> bool:
        """Whether an actor may have the next image, too.

        An image whose worker or node died works alone: if the next one dies too, no other image is to blame, nor to pay.
        """
        held = [running.task for running in self._running.values() if running.actor is actor]
        next_task = self._waiting[0]
        has_suspect = any(self._is_suspect(task) for task in (*held, next_task))
        most = 1 if has_suspect else self._images_per_actor
        return len(held) < most

    def _is_suspect(self, task: Task) -> bool:
        return task["image_id"] in self._deaths or task["image_id"] in self._lost_nodes

    def _seconds_to_wait(self) -> float:
        """Seconds until the first image is overdue; with none under way, until there is something to say or no actor will start."""
        if self._running:
            until = min(running.since for running in self._running.values()) + self._timeout_s
            return max(0.0, until - time.monotonic())
        seconds = max(0.0, self._seconds_to_start())
        return seconds if self._is_told else min(SILENT_S, seconds)

    def _seconds_to_start(self) -> float:
        """Seconds that are left for an actor to start."""
        started_last = max(starting.since for starting in self._starting.values())
        return started_last + self._wait_s - time.monotonic()

    def _tell(self) -> None:
        """Say once what the run waits for."""
        if not self._is_told:
            self._is_told = True
            log.warning("harmonizing waits up to %g s for a place for an actor: %s", self._wait_s, self._place())

    def _finished(self, ref: ray.ObjectRef) -> Iterator[list[LedgerRow]]:
        running = self._running.pop(ref)
        try:
            rows = ray.get(ref)
        except RayError as error:  # the actor died, of a signal, of memory, with its node: it gave no row of its own
            self._replace(running.actor)
            if _is_node_lost(error):
                received = f"{LOST_NODES} nodes were lost, one after the other, while they had this image ({error})"
                remedy = "Run again; if nodes are lost anew, try the image alone on a machine with more memory."
                lost = DataError(received, "a node that stays until it is done", remedy)
                yield from self._try_again(running.task, Problem.of(lost), self._lost_nodes, LOST_NODES)
            else:
                received = f"the worker died {ATTEMPTS} times on this image ({error})"
                remedy = "If memory ran out, bound it by harmonize.memory_gb (--mem-gb) or use a larger machine; else try the image alone."
                died = DataError(received, "a worker that finishes it", remedy)
                yield from self._try_again(running.task, Problem.of(died), self._deaths, ATTEMPTS)
        else:
            yield rows

    def _overdue(self) -> Iterator[list[LedgerRow]]:
        """End the actor of the image that takes longest.

        An image that was alone there is to blame. Another is tried again, alone.
        """
        ref = min(self._running, key=lambda ref: self._running[ref].since)
        overdue = self._running.pop(ref)
        was_alone = all(other.actor is not overdue.actor for other in self._running.values())
        self._replace(overdue.actor)
        remedy = "Raise harmonize.timeout_s if images may take longer."
        late = DataError(f"not done after {self._timeout_s:g} s", "an image done by then", remedy)
        if was_alone:
            yield self._failed(overdue.task, Problem.of(late))
        else:
            yield from self._try_again(overdue.task, Problem.of(late), self._deaths, ATTEMPTS)

    def _try_again(self, task: Task, problem: Problem, mishaps: Counter[str], most: int) -> Iterator[list[LedgerRow]]:
        """Put an image in front of those that wait; after the last mishap of its kind it has failed."""
        mishaps[task["image_id"]] += 1
        if mishaps[task["image_id"]] < most:
            self._waiting.appendleft(task)
        else:
            yield self._failed(task, problem)

    def _replace(self, actor: Any) -> None:
        """Another actor for one that is dead or to be ended; once, however many images it had."""
        if actor in self._ready:
            self._ready.remove(actor)
            ray.kill(actor)
            self._start()

    def _give_up(self) -> Iterator[list[LedgerRow]]:
        """Fail all images that wait: no actor is likely to start any more."""
        if self._bad_starts:
            received = f"no worker could be started ({self._bad_starts[-1]})"
        else:
            received = f"no worker could be started within {self._wait_s:g} s: {self._place()}"
        remedy = "Add nodes, end other jobs, ask for less (harmonize.gpus_per_actor) or raise harmonize.wait_s; then run again."
        problem = Problem.of(DataError(received, "a place for one", remedy))
        self._end_starting()
        while self._waiting:
            yield self._failed(self._waiting.popleft(), problem)

    def _end_starting(self) -> None:
        """End the actors that have not started."""
        for starting in self._starting.values():
            ray.kill(starting.actor)
        self._starting.clear()


def _is_node_lost(error: RayError) -> bool:
    """Whether an actor died with its node; Ray says so in words alone."""
    return isinstance(error, ActorDiedError) and "node has died" in str(error)
