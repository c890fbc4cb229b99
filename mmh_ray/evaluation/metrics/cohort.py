"""Holds one method's images of a sequence, row by row: the input of the cohort metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmh_ray.evaluation.inputs.records import ImageRecord, ages_of, sexes_of
from mmh_ray.evaluation.metrics.cohort_inputs import CohortInputs
from mmh_ray.evaluation.metrics.per_image import ImageMetrics
from mmh_ray.evaluation.statistics.metric_values import MetricValues

LEAST_SUBJECTS = 3
"""Minimum number of subjects per site for the probes, which hold some of them out."""


@dataclass(frozen=True, eq=False)
class MethodCohort:
    """One method's images of a sequence.

    Attributes
    ----------
    images:
        Records and metrics; for a feature method, those of the raw scans.
    features, raw_features:
        ``(n, F)`` of the method's images and of the raw scans.
    inputs:
        Further inputs of the metrics, per image; empty for a feature method.
    raw_slices:
        ``(n, S, P, P)`` of the raw scans, for the frozen CNN; None: no CNN probes.
    """

    method: str
    images: Sequence[ImageMetrics]
    features: np.ndarray
    raw_features: np.ndarray
    inputs: Sequence[CohortInputs] = ()
    raw_slices: np.ndarray | None = None

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Image id of each row."""
        return tuple(image.record.image_id for image in self.images)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject of each row."""
        return tuple(image.record.subject for image in self.images)

    @property
    def sites(self) -> tuple[str, ...]:
        """Site of each row."""
        return tuple(image.record.site for image in self.images)

    @property
    def ages(self) -> np.ndarray:
        """``(n,)`` in years; NaN where unknown."""
        return ages_of(image.record for image in self.images)

    @property
    def sexes(self) -> np.ndarray:
        """``(n,)`` 0 for male, 1 for female; NaN where unknown."""
        return sexes_of(image.record for image in self.images)

    @property
    def grey_matter_shares(self) -> np.ndarray:
        """``(n,)`` share of grey matter in the brain; NaN where unknown."""
        shares = [image.values.get("gm_share", np.nan) for image in self.images]
        return np.array(shares, dtype=np.float64)

    @property
    def has_travelers(self) -> bool:
        """Whether any subject was scanned at more than one site."""
        visits = set(zip(self.subjects, self.sites, strict=True))
        return len(visits) > len(set(self.subjects))

    @property
    def styles(self) -> np.ndarray | None:
        """``(n, D)`` style vectors; None unless every image has one."""
        styles = [image.style for image in self.inputs if image.style is not None]
        if not styles or len(styles) < len(self.images):
            return None
        return np.stack(styles)

    def only(self, rows: Sequence[int], features: np.ndarray) -> MethodCohort:
        """The cohort with some of its images, the given features and no inputs."""
        images = [self.images[row] for row in rows]
        return replace(self, images=images, features=features, inputs=())

    def metric(self, values: np.ndarray, **facts: Any) -> MetricValues:
        """A metric with one unit per row, without rows that are not finite; ``facts`` go to :class:`MetricValues`."""
        if values.dtype != np.float32:
            values = np.asarray(values, dtype=np.float64)
        is_known = np.isfinite(values if values.ndim == 1 else values.sum(axis=1))
        metric = MetricValues(values, self.image_ids, self.subjects, **facts)
        if is_known.all():
            return metric
        return metric.only(np.array(metric.units)[is_known].tolist())


def probes_make_sense(records: Iterable[ImageRecord]) -> bool:
    """Whether there are at least two sites, each with :data:`LEAST_SUBJECTS` subjects."""
    subjects_by_site: dict[str, set[str]] = {}
    for record in records:
        subjects_by_site.setdefault(record.site, set()).add(record.subject)
    if len(subjects_by_site) < 2:
        return False
    return min(len(subjects) for subjects in subjects_by_site.values()) >= LEAST_SUBJECTS
