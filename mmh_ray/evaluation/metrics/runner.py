"""Runs metrics, measures the time that each takes, and records what could not be measured."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mmh_ray.bids.archives import Unmatched
from mmh_ray.errors import DataError


@dataclass
class MetricRunner:
    """Runs metrics, and records times, notes and trainings.

    Attributes
    ----------
    seconds, calls:
        Processor seconds and number of calls by metric.
    notes:
        Images or methods by the text of the note that concerns them.
    trainings:
        How the training of each probe ended.
    """

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)
    notes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, metric: str, owner: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function; return None if it raises a DataError, which is noted, or its number is not finite.

        ``owner`` is the measured image or method.
        """
        start = time.process_time()
        try:
            result = function(*arguments)
        except DataError as error:
            self.notes[f"no {metric}: {error}"].append(owner)
            return None
        finally:
            self.seconds[metric] += time.process_time() - start
            self.calls[metric] += 1
        if isinstance(result, float) and not math.isfinite(result):
            return None
        return result

    def merge(self, other: MetricRunner) -> None:
        """Add another runner's records."""
        for metric, seconds in other.seconds.items():
            self.seconds[metric] += seconds
        self.calls.update(other.calls)
        self.trainings.update(other.trainings)
        for text, owners in other.notes.items():
            self.notes[text] += owners

    def sentences(self) -> list[str]:
        """A sentence per note."""
        sentences = []
        for text, owners in self.notes.items():
            more = f" and {len(owners) - 1} more" if len(owners) > 1 else ""
            sentences.append(f"{text} ({owners[0]}{more})")
        return sentences


@dataclass
class EvaluationLog:
    """The problems, notes and metric times of an evaluation."""

    problems: list[Unmatched] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runner: MetricRunner = field(default_factory=MetricRunner)

    def add_unusable(self, method: str, image_id: str, reason: object) -> None:
        """Record an image that could not be read or scored, with its reason."""
        problem = Unmatched(method, image_id, "unusable", str(reason))
        self.problems.append(problem)

    def merge(self, other: EvaluationLog) -> None:
        """Add another log."""
        self.problems += other.problems
        self.notes += other.notes
        self.runner.merge(other.runner)
