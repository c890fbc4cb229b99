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
    csf, gm, wm, affine = _template(spacing_mm)
    displacement = _shape(rng, csf.shape, spacing_mm) + _ventricle_push(person, csf, spacing_mm)
    csf, gm, wm = (_warp(tissue, displacement) for tissue in (csf, gm, wm))
    folding = smooth_noise(rng, csf.shape, 7.0 / spacing_mm)
    folded = np.stack([csf, gm * np.exp(0.35 * folding), wm * np.exp(-0.35 * folding)])
    csf, gm, wm = folded * (csf + gm + wm) / np.maximum(folded.sum(0), 1e-6)
    thinning = max(0.0, person.age - 20) / 60 * 0.5
    lost = thinning * gm * np.clip(2 * ndimage.gaussian_filter(csf, 3.0 / spacing_mm), 0, 1)
    fractions = _sharpen(np.stack([csf + lost, gm - lost, wm, np.zeros_like(wm)]))
    pure = np.eye(len(TISSUES))
    for _ in range(person.lesions):
        _place(rng, fractions, spacing_mm, fractions[2], pure[3], radius_mm=(2.0, 6.0))
    for _ in range(person.cavities):
        _place(rng, fractions, spacing_mm, fractions[2], pure[0], radius_mm=(5.0, 18.0))
    for _ in range(person.oddities):
        mixture = rng.dirichlet(np.full(len(TISSUES), 0.5))
        _place(rng, fractions, spacing_mm, fractions.sum(0), mixture, radius_mm=(2.0, 14.0))
    scalp = _scalp(rng, fractions.sum(0), spacing_mm) if person.scalp else np.zeros_like(csf)
    fractions[fractions < 1e-6] = 0  # below it only rounding is left
    return Anatomy(fractions.astype(np.float32), scalp.astype(np.float32), affine)


@cache
def _template(spacing_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """CSF, GM and WM fractions of ICBM-152 at a spacing, and their affine."""
    (gm, affine), (wm, _), (brain, _) = (
        _downsample(load(resolution=1), spacing_mm)
        for load in (
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    )
    total = np.maximum(gm + wm, 1e-6)
    gm, wm = gm * np.minimum(1, brain / total), wm * np.minimum(1, brain / total)
    return np.clip(brain - gm - wm, 0, 1), gm, wm, affine


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
    bases = [_spline_basis(n, max(1.0, float(sigma))) for n in shape]
    field = rng.standard_normal(tuple(basis.shape[1] for basis in bases)).astype(np.float32)
    for basis in bases:  # contract the first axis, append the new one: after three turns the order is I, J, K again
        field = np.einsum("abc,na->bcn", field, basis)  # not BLAS: its rounding changes with the number of threads
    return (field - field.mean()) / field.std()


@cache
def _spline_basis(length: int, knot: float) -> np.ndarray:
    """Values of the cubic B-splines at each voxel, ``(length, knots)``."""
    knots = np.arange(-1, int(np.ceil(length / knot)) + 2)
    distance = np.abs(np.arange(length)[:, None] / knot - knots)
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
    return np.where(distance < 1, near, np.where(distance < 2, far, 0)).astype(np.float32)


def _shape(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float) -> np.ndarray:
    """``(3, I, J, K)`` displacement in voxels: head size and proportions, and smooth bends of 20 and 50 mm."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij")).astype(np.float32)
    scale = rng.normal(0, 0.035, (3, 1, 1, 1)) + rng.normal(0, 0.025)
    wide = np.stack([smooth_noise(rng, shape, 50 / spacing_mm) for _ in range(3)]) * 2.5
    fine = np.stack([smooth_noise(rng, shape, 20 / spacing_mm) for _ in range(3)]) * 1.0
    return (grid * scale + (wide + fine) / spacing_mm).astype(np.float32)


def _ventricle_push(person: Person, csf: np.ndarray, spacing_mm: float) -> np.ndarray:
    """``(3, I, J, K)`` displacement in voxels that draws the samples around the ventricles towards them, so that they grow."""
    deep = ndimage.gaussian_filter(np.where(_deep(csf.shape), csf, 0), 6.0 / spacing_mm)
    strength = person.ventricles + max(0.0, person.age - 20) / 60
    pull = np.stack(np.gradient(deep))
    steps = max(1, int(np.ceil(strength)))
    pull *= strength / steps * 5.0 / spacing_mm / max(float(np.abs(pull).max()), 1e-6)
    push = pull
    for _ in range(steps - 1):  # in one long step samples would pass the ventricle and find tissue behind it
        push = push + np.stack([_warp(part, push) for part in pull])
    return push.astype(np.float32)


def _deep(shape: tuple[int, ...]) -> np.ndarray:
    """The middle of the template, where its CSF is ventricle."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return (axes[0] / 0.4) ** 2 + ((axes[1] - 0.05) / 0.45) ** 2 + ((axes[2] - 0.0) / 0.35) ** 2 < 1


def _warp(image: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in image.shape], indexing="ij"))
    return ndimage.map_coordinates(image, grid + displacement, order=1, mode="constant")


def _sharpen(fractions: np.ndarray, power: float = 2.0) -> np.ndarray:
    """Undo the blur of the population average: raise to a power, keep each voxel's total."""
    total = fractions.sum(0)
    raised = np.maximum(fractions, 0) ** power
    return raised / np.maximum(raised.sum(0), 1e-6) * np.clip(total, 0, 1)


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
    centre = candidates[rng.integers(len(candidates))]
    radius = rng.uniform(*radius_mm) / spacing_mm
    offsets = (
        np.stack(np.meshgrid(*[np.arange(n) for n in fractions.shape[1:]], indexing="ij")) - centre[:, None, None, None]
    )
    distance = np.sqrt((offsets**2).sum(0)) * (1 + 0.25 * smooth_noise(rng, fractions.shape[1:], 2 * radius))
    share = np.clip(radius - distance + 0.5, 0, 1) * np.minimum(fractions.sum(0), 1)
    fractions *= 1 - share
    fractions += mixture[:, None, None, None] * share


def _scalp(rng: np.random.Generator, brain: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Fat and skin: a shell outside a skull of random thickness."""
    distance = ndimage.distance_transform_edt(brain < 0.5) * spacing_mm
    skull, skin = rng.uniform(4, 9), rng.uniform(4, 10)
    return np.clip((distance - skull) / spacing_mm, 0, 1) * np.clip((skull + skin - distance) / spacing_mm, 0, 1)
