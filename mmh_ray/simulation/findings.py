"""Places pathology in a simulated brain: lesions, cavities, tumours, and blobs unlike any atlas.

Shapes: ``T`` tissues (:data:`mmh_ray.simulation.tissues.TISSUES`), ``X Y Z`` the working grid.
"""

from __future__ import annotations

import numpy as np

from mmh_ray.simulation.anatomy import smooth_noise
from mmh_ray.simulation.head_traits import HeadTraits
from mmh_ray.simulation.tissues import BRAIN, ENHANCING, FLUID, LESION, ODDITY, TISSUES, WHITE


def place_findings(fractions: np.ndarray, traits: HeadTraits, spacing_mm: float, rng: np.random.Generator) -> None:
    """Place a person's lesions, cavities, tumours and oddities; changes the tissue shares ``(T, X, Y, Z)``."""
    pure = np.eye(len(TISSUES), dtype=np.float32)
    brain = list(BRAIN)
    white = fractions[WHITE]  # a view: it changes with every blob
    deep = fractions[brain].sum(axis=0) > 0.95
    for _ in range(traits.lesions):
        place_blob(rng, fractions, spacing_mm, white > 0.9, pure[LESION], (1.5, 7.0))
    for _ in range(traits.cavities):
        is_fluid = rng.random() < 0.7
        content = pure[FLUID] if is_fluid else pure[ODDITY]
        place_blob(rng, fractions, spacing_mm, deep, content, (5.0, 28.0))
    for _ in range(traits.tumours):
        _place_tumour(fractions, deep, spacing_mm, rng)
    for _ in range(traits.oddities):
        shares = rng.dirichlet(np.full(len(brain), 0.4)).astype(np.float32)
        mixture = shares @ pure[brain]
        place_blob(rng, fractions, spacing_mm, deep, mixture, (2.0, 14.0))


def _place_tumour(fractions: np.ndarray, deep: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> None:
    """Place oedema, inside it a rim that may have taken up contrast agent, and inside that a core."""
    pure = np.eye(len(TISSUES), dtype=np.float32)
    radius_mm = rng.uniform(5.0, 25.0)
    oedema_mm = (1.5 * radius_mm, 1.7 * radius_mm)
    rim_mm = (radius_mm, radius_mm)
    core_mm = (0.5 * radius_mm, 0.85 * radius_mm)
    centre = place_blob(rng, fractions, spacing_mm, deep, pure[LESION], oedema_mm)
    strength = rng.uniform(0, 1)
    takes_up_agent = rng.random() < 0.6
    uptake = strength if takes_up_agent else 0.0
    rim = uptake * pure[ENHANCING] + (1 - uptake) * pure[ODDITY]
    place_blob(rng, fractions, spacing_mm, centre, rim, rim_mm)
    core = rng.choice([FLUID, ODDITY, LESION])
    place_blob(rng, fractions, spacing_mm, centre, pure[core], core_mm)


def place_blob(
    rng: np.random.Generator,
    fractions: np.ndarray,
    spacing_mm: float,
    inside: np.ndarray,
    mixture: np.ndarray,
    radius_mm: tuple[float, float],
) -> np.ndarray:
    """Put an irregular blob of a ``mixture`` ``(T,)`` of tissues at a random voxel of ``inside``; changes
    ``fractions``.

    Returns
    -------
    ``(X, Y, Z)`` bool, the voxel at its centre; all False if ``inside`` is empty.
    """
    centre = np.zeros(inside.shape, bool)
    candidates = np.flatnonzero(inside)
    if not len(candidates):
        return centre
    chosen = candidates[rng.integers(len(candidates))]
    middle = np.unravel_index(chosen, inside.shape)
    centre[middle] = True
    radius = rng.uniform(*radius_mm) / spacing_mm
    reach = int(np.ceil(1.8 * radius)) + 1
    box = []
    offsets_along = []
    for place, length in zip(middle, inside.shape, strict=True):
        first = max(0, place - reach)
        past_last = min(length, place + reach + 1)
        box.append(slice(first, past_last))
        offsets_along.append(np.arange(first, past_last) - place)
    across, ahead, up = np.meshgrid(*offsets_along, indexing="ij")
    stretch_across, stretch_ahead, stretch_up = np.exp(rng.normal(0, 0.2, 3))
    squared = (across * stretch_across) ** 2 + (ahead * stretch_ahead) ** 2 + (up * stretch_up) ** 2
    irregular = 1 + 0.25 * smooth_noise(rng, squared.shape, max(2.0, radius))
    distance = np.sqrt(squared) * irregular
    part = fractions[(slice(None), *box)]
    blob = np.clip(radius - distance + 0.5, 0, 1)
    share = blob * part[list(BRAIN)].sum(axis=0)
    part *= 1 - share
    part += mixture[:, None, None, None] * share
    return centre
