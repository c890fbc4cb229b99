"""Reads images that are not scored: baselines are fitted on them, and they describe a target site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmh_ray.evaluation.baselines.image_baselines import quantile_function
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import StyleFunction, read_scan
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.features import image_features


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """What is kept from one training image.

    Attributes
    ----------
    before, after:
        ``(1001,)`` quantile functions of the brain before and after N4.
    scaled_before, scaled_after:
        ``(1001,)`` the same quantile functions for the image scaled by its percentiles.
    features:
        Named features of the scan.
    style:
        ``(D,)`` style vector; None if not requested.
    """

    record: ImageRecord
    before: np.ndarray
    after: np.ndarray
    scaled_before: np.ndarray
    scaled_after: np.ndarray
    features: Mapping[str, float]
    style: np.ndarray | None = None


def training_image(
    record: ImageRecord, iterations: tuple[int, ...], style: StyleFunction | None = None
) -> TrainingImage:
    """Read a scan and compute what is kept; ``iterations`` are N4's, per level.

    Raises
    ------
    DataError
        If scan or mask cannot be used.
    """
    scan = read_scan(record, iterations)
    image = scan.volume.data
    mask = scan.mask
    return TrainingImage(
        record=record,
        before=quantile_function(image, mask),
        after=quantile_function(scan.corrected, mask),
        scaled_before=quantile_function(scale_by_percentiles(image, mask), mask),
        scaled_after=quantile_function(scale_by_percentiles(scan.corrected, mask), mask),
        features=image_features(image, mask, scan.volume.spacing),
        style=None if style is None else style(image, mask, scan.volume.affine),
    )


@dataclass(frozen=True, eq=False)
class TargetCohort:
    """Intensities and style of a target site, from the scans of its other people; for one sequence.

    Attributes
    ----------
    intensities:
        ``(1001 n,)`` concatenated quantile functions of ``n`` scaled brains, so that every image has the same weight.
    corrected:
        ``(1001 n,)`` the same after N4.
    style:
        ``(D,)`` mean style vector; None without a style encoder.
    """

    intensities: np.ndarray
    corrected: np.ndarray
    style: np.ndarray | None

    @classmethod
    def of(cls, images: Sequence[TrainingImage]) -> TargetCohort:
        """From the images of the site."""
        styles = [image.style for image in images if image.style is not None]
        return cls(
            intensities=np.concatenate([image.scaled_before for image in images]),
            corrected=np.concatenate([image.scaled_after for image in images]),
            style=np.mean(styles, axis=0) if styles else None,
        )
