"""Simulated anatomies: random people made from the ICBM-152 tissue fractions that ship inside nilearn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from nilearn import datasets
from scipy import ndimage

TISSUES = ("CSF", "GM", "WM", "lesion")
"""Order of the channels of :attr:`Anatomy.fractions`."""


@dataclass(frozen=True)
class Person:
    """What makes an anatomy, besides the random shape of its ``seed``."""

    seed: int
    age: float = 40.0
    """Years; widens ventricles and thins the cortex."""
    lesions: int = 0
    """White-matter lesions to place."""
    ventricles: float = 0.0
    """Enlargement of the ventricles beyond age, 0 none to 3 extreme hydrocephalus."""
    cavities: int = 0
    """Fluid-filled cysts or resection cavities."""
    oddities: int = 0
    """Blobs of a random mixture of tissues anywhere in the brain, as no atlas knows them: what a model must not explain away."""
    scalp: bool = False
    """Whether skull and scalp surround the brain."""


@dataclass(frozen=True)
class Anatomy:
    """Tissue fractions of one person on an ICBM-152 grid.

    Attributes
    ----------
    fractions:
        ``(4, I, J, K)`` float32 shares of :data:`TISSUES`; their sum is 1 inside the brain.
    scalp:
        ``(I, J, K)`` float32 share of fat and skin outside the skull, all zero without a scalp.
    affine:
        ``(4, 4)`` voxel indices to millimetres.
    """

    fractions: np.ndarray
    scalp: np.ndarray
    affine: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        """``(I, J, K)`` bool: voxels more than half brain."""
        return self.fractions.sum(0) > 0.5


def simulate_anatomy(person: Person, spacing_mm: float) -> Anatomy:
    """Draw a person: smooth random shape, own cortical folding, ventricles and cortex by age, lesions, cavities.

    The same person at the same spacing gives the same bytes.
    """
    rng = np.random.default_rng([person.seed, 7])
    csf, grey, white, affine = _template(spacing_mm)
    displacement = _shape(rng, csf.shape, spacing_mm) + _ventricle_push(person, csf, spacing_mm)
    csf = _warp(csf, displacement)
    grey = _warp(grey, displacement)
    white = _warp(white, displacement)
    csf, grey, white = _folded(rng, csf, grey, white, spacing_mm)
    thinning = max(0.0, person.age - 20) / 60 * 0.5
    near_csf = np.clip(2 * ndimage.gaussian_filter(csf, 3.0 / spacing_mm), 0, 1)
    lost = thinning * grey * near_csf
    fractions = _sharpen(np.stack([csf + lost, grey - lost, white, np.zeros_like(white)]))
    _place_findings(rng, fractions, person, spacing_mm)
    scalp = _scalp(rng, fractions.sum(0), spacing_mm) if person.scalp else np.zeros_like(csf)
    fractions[fractions < 1e-6] = 0  # below it only rounding is left
    return Anatomy(fractions.astype(np.float32), scalp.astype(np.float32), affine)


@cache
def _template(spacing_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """CSF, GM and WM fractions of ICBM-152 at a spacing, and their affine."""
    grey, affine = _downsample(datasets.load_mni152_gm_template(resolution=1), spacing_mm)
    white, _ = _downsample(datasets.load_mni152_wm_template(resolution=1), spacing_mm)
    brain, _ = _downsample(datasets.load_mni152_brain_mask(resolution=1), spacing_mm)
    total = np.maximum(grey + white, 1e-6)
    within_brain = np.minimum(1, brain / total)
    grey = grey * within_brain
    white = white * within_brain
    csf = np.clip(brain - grey - white, 0, 1)
    return csf, grey, white, affine


def _downsample(image, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A 1 mm template at another isotropic spacing (anti-aliased), and its affine."""
    data = np.asarray(image.dataobj, np.float32)
    if spacing_mm > 1:
        data = ndimage.gaussian_filter(data, 0.4 * np.sqrt(spacing_mm**2 - 1))
    shape = tuple(int(n / spacing_mm) for n in data.shape)
    affine = image.affine @ np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    resampled = ndimage.affine_transform(data, np.full(3, spacing_mm), output_shape=shape, order=1)
    return np.clip(resampled, 0, 1), affine


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smooth random field ``(I, J, K)`` of zero mean and unit variance: random cubic B-spline with knots ``sigma`` voxels apart."""
    bases = [_spline_basis(length, max(1.0, float(sigma))) for length in shape]
    knots = tuple(basis.shape[1] for basis in bases)
    field = rng.standard_normal(knots).astype(np.float32)
    for basis in bases:  # contract the first axis, append the new one: after three turns the order is I, J, K again
        field = np.einsum("abc,na->bcn", field, basis)  # not BLAS: its rounding changes with the number of threads
    return (field - field.mean()) / field.std()


@cache
def _spline_basis(length: int, knot: float) -> np.ndarray:
    """Values of the cubic B-splines at each voxel, ``(length, knots)``."""
    last_knot = int(np.ceil(length / knot)) + 2
    knots = np.arange(-1, last_knot)
    voxels = np.arange(length)[:, None] / knot
    distance = np.abs(voxels - knots)
    within_one = 2 / 3 - distance**2 + distance**3 / 2
    within_two = (2 - distance) ** 3 / 6
    values = np.where(distance < 2, within_two, 0)
    return np.where(distance < 1, within_one, values).astype(np.float32)


def _shape(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float) -> np.ndarray:
    """``(3, I, J, K)`` displacement in voxels: head size and proportions, and smooth bends of 20 and 50 mm."""
    from_centre = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij")).astype(np.float32)
    scale = rng.normal(0, 0.035, (3, 1, 1, 1)) + rng.normal(0, 0.025)
    wide = _vector_field(rng, shape, 50 / spacing_mm) * 2.5
    fine = _vector_field(rng, shape, 20 / spacing_mm) * 1.0
    bends = (wide + fine) / spacing_mm
    return (from_centre * scale + bends).astype(np.float32)


def _vector_field(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Three independent smooth fields, ``(3, I, J, K)``."""
    return np.stack([smooth_noise(rng, shape, sigma) for _ in range(3)])


def _ventricle_push(person: Person, csf: np.ndarray, spacing_mm: float) -> np.ndarray:
    """``(3, I, J, K)`` displacement in voxels that draws the samples around the ventricles towards them, so that they grow."""
    ventricles = np.where(_deep(csf.shape), csf, 0)
    soft = ndimage.gaussian_filter(ventricles, 6.0 / spacing_mm)
    strength = person.ventricles + max(0.0, person.age - 20) / 60
    steps = max(1, int(np.ceil(strength)))
    pull = np.stack(np.gradient(soft))
    pull *= strength / steps * 5.0 / spacing_mm / max(float(np.abs(pull).max()), 1e-6)
    push = pull
    for _ in range(steps - 1):  # in one long step samples would pass the ventricle and find tissue behind it
        push = push + np.stack([_warp(part, push) for part in pull])
    return push.astype(np.float32)


def _deep(shape: tuple[int, ...]) -> np.ndarray:
    """The middle of the template, where its CSF is ventricle: an ellipsoid, in shares of half the grid."""
    across, ahead, up = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return (across / 0.4) ** 2 + ((ahead - 0.05) / 0.45) ** 2 + (up / 0.35) ** 2 < 1


def _warp(image: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """The image sampled at every voxel's place plus its displacement."""
    places = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in image.shape], indexing="ij"))
    return ndimage.map_coordinates(image, places + displacement, order=1, mode="constant")


def _folded(
    rng: np.random.Generator, csf: np.ndarray, grey: np.ndarray, white: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Own folding of the cortex: grey matter grows where white matter shrinks; each voxel keeps its total."""
    folding = smooth_noise(rng, csf.shape, 7.0 / spacing_mm)
    folded = np.stack([csf, grey * np.exp(0.35 * folding), white * np.exp(-0.35 * folding)])
    csf, grey, white = folded * (csf + grey + white) / np.maximum(folded.sum(0), 1e-6)
    return csf, grey, white


def _sharpen(fractions: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Undo the blur of the population average: raise to a power, keep each voxel's total."""
    total = fractions.sum(0)
    raised = np.maximum(fractions, 0) ** power
    return raised / np.maximum(raised.sum(0), 1e-6) * np.clip(total, 0, 1)


def _place_findings(rng: np.random.Generator, fractions: np.ndarray, person: Person, spacing_mm: float) -> None:
    """Put the person's lesions, cavities and oddities into the brain; changes ``fractions``."""
    csf, _, _, lesion = np.eye(len(TISSUES))
    white = fractions[2]  # a view: what is placed shows in it
    for _ in range(person.lesions):
        _place(rng, fractions, spacing_mm, white, lesion, radius_mm=(2.0, 6.0))
    for _ in range(person.cavities):
        _place(rng, fractions, spacing_mm, white, csf, radius_mm=(5.0, 18.0))
    for _ in range(person.oddities):
        mixture = rng.dirichlet(np.full(len(TISSUES), 0.5))
        _place(rng, fractions, spacing_mm, fractions.sum(0), mixture, radius_mm=(2.0, 14.0))


def _place(
    rng: np.random.Generator,
    fractions: np.ndarray,
    spacing_mm: float,
    inside: np.ndarray,
    mixture: np.ndarray,
    radius_mm: tuple[float, float],
) -> None:
    """Put an irregular blob of a ``mixture`` of tissues at a random voxel where ``inside`` is near 1; changes ``fractions``."""
    candidates = np.argwhere(inside > 0.9)
    if not len(candidates):
        return
    shape = fractions.shape[1:]
    centre = candidates[rng.integers(len(candidates))]
    radius = rng.uniform(*radius_mm) / spacing_mm
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    offsets = voxels - centre[:, None, None, None]
    irregular = 1 + 0.25 * smooth_noise(rng, shape, 2 * radius)
    distance = np.sqrt((offsets**2).sum(0)) * irregular
    share = np.clip(radius - distance + 0.5, 0, 1) * np.minimum(fractions.sum(0), 1)
    fractions *= 1 - share
    fractions += mixture[:, None, None, None] * share


def _scalp(rng: np.random.Generator, brain: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Fat and skin: a shell outside a skull of random thickness."""
    distance_mm = ndimage.distance_transform_edt(brain < 0.5) * spacing_mm
    skull_mm = rng.uniform(4, 9)
    skin_mm = rng.uniform(4, 10)
    outside_skull = np.clip((distance_mm - skull_mm) / spacing_mm, 0, 1)
    below_surface = np.clip((skull_mm + skin_mm - distance_mm) / spacing_mm, 0, 1)
    return outside_skull * below_surface
