"""Hands images to a pool of actors, and handles images that kill or block their actor.

Written by hand, because Ray Data has neither a time limit per image nor isolation of the image that killed an actor.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorDiedError, RayError

from mmh_ray.bids.rows import LedgerRow, Problem
from mmh_ray.errors import DataError
from mmh_ray.harmonization.job import Task

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""Times that an image is tried if its worker dies."""
LOST_NODES = 5
"""Lost nodes after which an image fails. Preemptible machines go away without any fault of the image, so there are more
attempts than for a worker that died; but an image may also take all memory of its node."""
SILENT_S = 30.0
"""Seconds without any actor after which a run logs what it waits for."""
ENDING_S = 20.0
"""Seconds that a finished run waits for actors that are still starting, so that they end by themselves."""
STARTS = 3
"""Consecutive failed starts of workers after which no further one is started."""


class _Running(NamedTuple):
    """An image that an actor is working on, and since when."""

    actor: Any
    task: Task
    since: float


class _Starting(NamedTuple):
    """An actor that is starting, and since when."""

    actor: Any
    since: float


@dataclass
class ActorPool:
    """Hands images to actors as they become free; a failing image or actor costs other images at most one attempt.

    Parameters
    ----------
    start_actor:
        Starts an actor with a method ``harmonize(task)``.
    size:
        Number of actors to start.
    images_per_actor:
        Most images that each actor has at a time.
    timeout_s:
        Seconds that an image may take.
    wait_s:
        Seconds that a run without any actor waits for one; a cluster may have to grow first.
    place:
        Describes what an actor needs and what the cluster has, for the log and the reason of images without an actor.
    failed:
        Makes the ledger rows of an image that failed with a problem.
    """

    start_actor: Callable[[], Any]
    size: int
    images_per_actor: int
    timeout_s: float
    wait_s: float
    place: Callable[[], str]
    failed: Callable[[Task, Problem], list[LedgerRow]]

    def __post_init__(self) -> None:
        self._wait_is_logged = False
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
        """Yield the ledger rows of each image as it finishes. Close the generator to stop the actors.

        On a permanent cluster they would otherwise go on writing to a folder that another run may use by then.

        Parameters
        ----------
        on_actor_ready:
            Called each time an actor has started.
        on_queue:
            Called with the number of images that no actor has yet.
        """
        self._waiting.extend(tasks)
        try:
            for _ in range(self.size):
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
                    self._log_wait()
                else:
                    yield from self._give_up()
            self._forget_actors()
        finally:
            on_queue(0)
            for actor in self._ready:
                ray.kill(actor)
            self._end_starting()

    def _next_event(self) -> ray.ObjectRef | None:
        """The call of an image or of an actor's start that has ended; None if none ended in time."""
        watched = [*self._running, *self._starting]
        if not watched:
            return None
        finished, _ = ray.wait(watched, timeout=self._seconds_to_wait())
        return finished[0] if finished else None

    def _start(self) -> None:
        actor = self.start_actor()
        self._starting[actor.__ray_ready__.remote()] = _Starting(actor, time.monotonic())

    def _forget_actors(self) -> None:
        """Drop the references to the actors, which ends them.

        An actor that is killed while it starts would be shown as FAILED on the dashboard of a run that succeeded.
        """
        refs = list(self._starting)
        if refs:
            started, _ = ray.wait(refs, num_returns=len(refs), timeout=ENDING_S)
            for ref in started:
                del self._starting[ref]
        self._ready.clear()

    def _started(self, ref: ray.ObjectRef) -> bool:
        """Take up an actor whose start has ended, or start another if it failed; returns whether it is ready."""
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
        for actor in self._ready * self.images_per_actor:
            if self._waiting and self._may_have_another(actor):
                task = self._waiting.popleft()
                call = actor.harmonize.options(name=f"harmonize {task['image_id']}")
                self._running[call.remote(task)] = _Running(actor, task, time.monotonic())

    def _may_have_another(self, actor: Any) -> bool:
        """Whether an actor may take the next image, too.

        An image whose worker or node died is tried alone: if that worker dies too, the cause is known, and no other
        image is lost with it.
        """
        held = [running.task for running in self._running.values() if running.actor is actor]
        next_task = self._waiting[0]
        has_suspect = any(self._is_suspect(task) for task in (*held, next_task))
        limit = 1 if has_suspect else self.images_per_actor
        return len(held) < limit

    def _is_suspect(self, task: Task) -> bool:
        return task["image_id"] in self._deaths or task["image_id"] in self._lost_nodes

    def _seconds_to_wait(self) -> float:
        """Seconds until an image is overdue; if none is running, until the wait is to be logged or given up."""
        if self._running:
            until = min(running.since for running in self._running.values()) + self.timeout_s
            return max(0.0, until - time.monotonic())
        seconds = max(0.0, self._seconds_to_start())
        return seconds if self._wait_is_logged else min(SILENT_S, seconds)

    def _seconds_to_start(self) -> float:
        """Seconds left for an actor to start."""
        last_start = max(starting.since for starting in self._starting.values())
        return last_start + self.wait_s - time.monotonic()

    def _log_wait(self) -> None:
        """Log once what the run waits for."""
        if not self._wait_is_logged:
            self._wait_is_logged = True
            log.warning("no actor is running; waiting up to %g s for one to start: %s", self.wait_s, self.place())

    def _finished(self, ref: ray.ObjectRef) -> Iterator[list[LedgerRow]]:
        running = self._running.pop(ref)
        try:
            rows = ray.get(ref)
        except RayError as error:  # the actor died (a signal, lack of memory, a lost node) without returning rows
            self._replace(running.actor)
            if _is_node_lost(error):
                received = f"{LOST_NODES} nodes were lost, one after the other, while they had this image ({error})"
                remedy = "Run again; if nodes are lost again, try the image alone on a machine with more memory."
                lost = DataError(received, "a node that stays until the image is done", remedy)
                yield from self._try_again(running.task, Problem.of(lost), self._lost_nodes, LOST_NODES)
            else:
                received = f"the worker died {ATTEMPTS} times on this image ({error})"
                remedy = (
                    "If memory ran out, limit it by harmonize.memory_gb (--mem-gb) or use a larger machine; "
                    "otherwise try the image alone."
                )
                died = DataError(received, "a worker that finishes the image", remedy)
                yield from self._try_again(running.task, Problem.of(died), self._deaths, ATTEMPTS)
        else:
            yield rows

    def _overdue(self) -> Iterator[list[LedgerRow]]:
        """Kill the actor of the image that has been running longest.

        If that image was alone in the actor, it fails. Otherwise it is tried again, alone.
        """
        ref = min(self._running, key=lambda ref: self._running[ref].since)
        overdue = self._running.pop(ref)
        was_alone = all(other.actor is not overdue.actor for other in self._running.values())
        self._replace(overdue.actor)
        remedy = "Raise harmonize.timeout_s if images may take longer."
        late = DataError(f"not done after {self.timeout_s:g} s", "an image done by then", remedy)
        if was_alone:
            yield self.failed(overdue.task, Problem.of(late))
        else:
            yield from self._try_again(overdue.task, Problem.of(late), self._deaths, ATTEMPTS)

    def _try_again(self, task: Task, problem: Problem, losses: Counter[str], limit: int) -> Iterator[list[LedgerRow]]:
        """Put an image first in the queue again; it fails once ``losses`` counts ``limit`` of its attempts."""
        losses[task["image_id"]] += 1
        if losses[task["image_id"]] < limit:
            self._waiting.appendleft(task)
        else:
            yield self.failed(task, problem)

    def _replace(self, actor: Any) -> None:
        """Kill an actor and start another in its place; once, however many images it had."""
        if actor in self._ready:
            self._ready.remove(actor)
            ray.kill(actor)
            self._start()

    def _give_up(self) -> Iterator[list[LedgerRow]]:
        """Fail all waiting images, because no actor is likely to start any more."""
        if self._bad_starts:
            received = f"no worker could be started ({self._bad_starts[-1]})"
        else:
            received = f"no worker could be started within {self.wait_s:g} s: {self.place()}"
        remedy = (
            "Add nodes, end other jobs, request less (harmonize.gpus_per_actor) or raise harmonize.wait_s; "
            "then run again."
        )
        problem = Problem.of(DataError(received, "room for a worker", remedy))
        self._end_starting()
        while self._waiting:
            yield self.failed(self._waiting.popleft(), problem)

    def _end_starting(self) -> None:
        """Kill the actors that have not started."""
        for starting in self._starting.values():
            ray.kill(starting.actor)
        self._starting.clear()


def _is_node_lost(error: RayError) -> bool:
    """Whether an actor died with its node; Ray says so only in the text of its error."""
    return isinstance(error, ActorDiedError) and "node has died" in str(error)
