"""Fits the levels of a trained model: curves that restore the contrast that its denoiser reduces. Needs no Ray.

A network trained on squared error predicts the mean of all likely values: where a scan does not show how much fluid a
voxel holds, the prediction lies in between. So bright tissue becomes too dark and dark tissue too bright, in all scans
alike. The pooled voxels of many simulated people show by how much. One increasing curve per sequence maps the histogram
of the predictions to that of the truth. It is the same for every scan, so it does not make scans more alike.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from mmh_ray.config import Config
from mmh_ray.distributed.domains import VALIDATION_PEOPLE, ChosenDomain
from mmh_ray.imaging.intensity import MonotoneMap
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.sampling import harmonize_volume
from mmh_ray.progress import progress

PEOPLE = 24
"""Simulated people that a curve is fitted on."""
_FIRST_EXAMPLE = VALIDATION_PEOPLE - 10**6
"""Number of the first example: people made from the label maps of training, but with numbers that it never reaches."""
_SHARES = np.linspace(0, 1, 65)[1:-1]
"""Quantiles used as knots, without the ends, which depend on a single voxel."""


def curves_of_levels(model: GlobalHarmonizer, domain: ChosenDomain, config: Config) -> dict[int, MonotoneMap]:
    """Curve of each sequence, by index, from the intensities of a model without levels to those of the domain."""
    predictions = defaultdict(list)
    truths = defaultdict(list)
    with progress(PEOPLE, "Finding levels", "people") as advance:
        for person in range(PEOPLE):
            for index, sequence in enumerate(config.model.sequences):
                scan, truth, mask = domain.example(config, sequence, _FIRST_EXAMPLE + 2 * person)
                prediction = harmonize_volume(model, scan, mask, index, config.harmonize)
                predictions[index].append(prediction[mask])
                truths[index].append(truth[mask])
            advance(1)
    return {index: _curve(np.concatenate(predictions[index]), np.concatenate(truths[index])) for index in predictions}


def _curve(predictions: np.ndarray, truths: np.ndarray) -> MonotoneMap:
    """Map the histogram of the predictions to that of the truths, and 0 to 0."""
    source = np.concatenate([[0.0], np.quantile(predictions, _SHARES)])
    target = np.concatenate([[0.0], np.quantile(truths, _SHARES)])
    return MonotoneMap.between(source, np.maximum.accumulate(target))
