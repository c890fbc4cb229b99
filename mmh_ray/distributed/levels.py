"""The levels of a trained model: what its denoiser draws together is taken apart again. Needs no Ray.

Squared error is least for the mean of what could be: where a scan leaves open how much fluid a voxel holds, the answer
lies between. So bright tissue comes out paler than it is and dark tissue brighter, in every scan alike. The voxels of
many simulated people, pooled, tell by how much: one increasing curve a sequence takes the histogram of the denoiser's
answers to that of the truth. It is the same for every scan, so that it brings no scan nearer to another.
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
"""Simulated people that a curve is made of."""
_FIRST_EXAMPLE = VALIDATION_PEOPLE - 10**6
"""Of people made of training's label maps whom training does not come to."""
_SHARES = np.linspace(0, 1, 65)[1:-1]
"""Quantiles that are the knots; the ends, which a single voxel decides, are left out."""


def curves_of_levels(model: GlobalHarmonizer, domain: ChosenDomain, config: Config) -> dict[int, MonotoneMap]:
    """Index of each sequence to the curve from the intensities of a model that has no levels yet to the domain's."""
    answers = defaultdict(list)
    truths = defaultdict(list)
    with progress(PEOPLE, "Finding levels", "people") as advance:
        for person in range(PEOPLE):
            for index, sequence in enumerate(config.model.sequences):
                scan, truth, mask = domain.example(config, sequence, _FIRST_EXAMPLE + 2 * person)
                answer = harmonize_volume(model, scan, mask, index, config.harmonize)
                answers[index].append(answer[mask])
                truths[index].append(truth[mask])
            advance(1)
    return {index: _curve(np.concatenate(answers[index]), np.concatenate(truths[index])) for index in answers}


def _curve(answers: np.ndarray, truths: np.ndarray) -> MonotoneMap:
    """From the histogram of the answers to that of the truths, and from 0 to 0."""
    source = np.concatenate([[0.0], np.quantile(answers, _SHARES)])
    target = np.concatenate([[0.0], np.quantile(truths, _SHARES)])
    return MonotoneMap.between(source, np.maximum.accumulate(target))
