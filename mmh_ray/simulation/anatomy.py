"""Simulates anatomies: random people, deformed from the ICBM-152 tissue fractions that are shipped with nilearn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from mmh_ray.config import GridConfig
from mmh_ray.imaging.grid import cut_out, working_affine

TISSUES = ("CSF", "GM", "WM", "lesion")
"""Order of the channels of :attr:`Anatomy.fractions`."""


@dataclass(frozen=True)
class Person:
    """The properties of a simulated anatomy; the ``seed`` determines its random shape."""

    seed: int
    age: float = 40.0
    """Years; widens ventricles and thins the cortex."""
    lesions: int = 0
    """White-matter lesions to place."""
    ventricles: float = 0.0
    """Enlargement of the ventricles beyond the effect of age: 0 is none, 3 is extreme hydrocephalus."""
    cavities: int = 0
    """Fluid-filled cysts or resection cavities."""
    oddities: int = 0
    """Blobs with a random mixture of tissues anywhere in the brain, unlike any atlas: a model must not remove them."""
    scalp: bool = False
    """Whether skull and scalp surround the brain."""


@dataclass(frozen=True)
class Anatomy:
    """Tissue fractions of one person on an ICBM-152 grid.

    Attributes
    ----------
    fractions:
        ``(4, I, J, K)`` float32 fractions of :data:`TISSUES`; their sum is 1 inside the brain.
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

    def on_grid(self, grid: GridConfig) -> Anatomy:
        """Crop or pad to the working grid, centred on the brain by whole voxels."""
        affine = working_affine(self.affine, self.brain, grid)
        fractions = [cut_out(share, self.affine, affine, grid.shape) for share in self.fractions]
        scalp = cut_out(self.scalp, self.affine, affine, grid.shape)
        return Anatomy(np.stack(fractions), scalp, affine)


def simulate_anatomy(person: Person, spacing_mm: float) -> Anatomy:
    """Simulate a person: random smooth shape, individual folding, ventricles and cortex by age, lesions, cavities.

    The same person at the same spacing gives the same bytes.
    """
    rng = np.random.default_rng([person.seed, 7])
    csf, grey, white, affine = _template(spacing_mm)
    shape = _shape(rng, csf.shape, spacing_mm)
    displacement = shape + _ventricle_push(person, csf, spacing_mm)
    csf = _warp(csf, displacement)
    grey = _warp(grey, displacement)
    white = _warp(white, displacement)
    csf, grey, white = _folded(rng, csf, grey, white, spacing_mm)
    thinning = max(0.0, person.age - 20) / 60 * 0.5
    lost = lost_cortex(csf, grey, thinning, spacing_mm)
    no_lesion = np.zeros_like(white)
    fractions = _sharpen(np.stack([csf + lost, grey - lost, white, no_lesion]))
    _place_findings(rng, fractions, person, spacing_mm)
    scalp = np.zeros_like(csf)
    if person.scalp:
        brain = fractions.sum(0)
        scalp = _scalp(rng, brain, spacing_mm)
    fractions[fractions < 1e-6] = 0  # smaller values are only rounding errors
    return Anatomy(fractions.astype(np.float32), scalp.astype(np.float32), affine)


def lost_cortex(fluid: np.ndarray, grey: np.ndarray, share: float, spacing_mm: float) -> np.ndarray:
    """Fraction of each voxel that turns from grey matter into fluid if a share of the cortex next to fluid is lost."""
    blurred_fluid = ndimage.gaussian_filter(fluid, 3.0 / spacing_mm)
    near_fluid = np.clip(2 * blurred_fluid, 0, 1)
    return share * grey * near_fluid


@cache
def _template(spacing_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """CSF, GM and WM fractions of ICBM-152 at a spacing, and their affine."""
    from nilearn import datasets  # the import takes a second, and only simulated people need it

    grey_image = datasets.load_mni152_gm_template(resolution=1)
    white_image = datasets.load_mni152_wm_template(resolution=1)
    brain_image = datasets.load_mni152_brain_mask(resolution=1)
    grey, affine = _downsample(grey_image, spacing_mm)
    white, _ = _downsample(white_image, spacing_mm)
    brain, _ = _downsample(brain_image, spacing_mm)
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
        sigma = 0.4 * np.sqrt(spacing_mm**2 - 1)
        data = ndimage.gaussian_filter(data, sigma)
    shape = tuple(int(length / spacing_mm) for length in data.shape)
    scale = np.full(3, spacing_mm)
    resampled = ndimage.affine_transform(data, scale, output_shape=shape, order=1)
    affine = image.affine @ np.diag([*scale, 1.0])
    return np.clip(resampled, 0, 1), affine


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smooth random field ``(I, J, K)`` with mean 0 and variance 1: a random cubic B-spline, knots ``sigma`` voxels
    apart."""
    knot_distance = max(1.0, float(sigma))
    bases = [_spline_basis(length, knot_distance) for length in shape]
    knots = tuple(basis.shape[1] for basis in bases)
    field = rng.standard_normal(knots).astype(np.float32)
    for basis in bases:  # contracts the first axis and appends the new one: after three steps the order is I, J, K
        field = np.einsum("abc,na->bcn", field, basis)  # not BLAS: its rounding depends on the number of threads
    centred = field - field.mean()
    return centred / field.std()


@cache
def _spline_basis(length: int, knot: float) -> np.ndarray:
    """Values of the cubic B-splines at each voxel, ``(length, knots)``."""
    last_knot = int(np.ceil(length / knot)) + 2
    knots = np.arange(-1, last_knot)
    voxels = np.arange(length)[:, None] / knot
    distance = np.abs(voxels - knots)
    squared = distance**2
    cubed = distance**3
    within_one = 2 / 3 - squared + cubed / 2
    within_two = (2 - distance) ** 3 / 6
    values = np.where(distance < 2, within_two, 0)
    values = np.where(distance < 1, within_one, values)
    return values.astype(np.float32)


def _shape(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float) -> np.ndarray:
    """``(3, I, J, K)`` displacement in voxels: head size and proportions, and smooth bends of 20 and 50 mm."""
    centre = np.array(shape).reshape(3, 1, 1, 1) / 2
    from_centre = (np.indices(shape) - centre).astype(np.float32)
    proportions = rng.normal(0, 0.035, (3, 1, 1, 1))
    head_size = rng.normal(0, 0.025)
    scale = proportions + head_size
    wide = _vector_field(rng, shape, 50 / spacing_mm)
    fine = _vector_field(rng, shape, 20 / spacing_mm)
    bends_mm = wide * 2.5 + fine
    bends = bends_mm / spacing_mm
    displacement = from_centre * scale + bends
    return displacement.astype(np.float32)


def _vector_field(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Three independent smooth fields, ``(3, I, J, K)``."""
    return np.stack([smooth_noise(rng, shape, sigma) for _ in range(3)])


def _ventricle_push(person: Person, csf: np.ndarray, spacing_mm: float) -> np.ndarray:
    """``(3, I, J, K)`` displacement in voxels that enlarges the ventricles: samples around them move towards them."""
    ventricles = np.where(_deep(csf.shape), csf, 0)
    soft = ndimage.gaussian_filter(ventricles, 6.0 / spacing_mm)
    by_age = max(0.0, person.age - 20) / 60
    strength = person.ventricles + by_age
    steps = max(1, int(np.ceil(strength)))
    slope = np.gradient(soft)
    pull = np.stack(slope)
    steepest = max(float(np.abs(pull).max()), 1e-6)
    pull *= strength / steps * 5.0 / spacing_mm / steepest
    push = pull
    for _ in range(steps - 1):  # in one long step, samples would pass the ventricle and hit tissue beyond it
        pull_there = [_warp(part, push) for part in pull]
        push = push + np.stack(pull_there)
    return push.astype(np.float32)


def _deep(shape: tuple[int, ...]) -> np.ndarray:
    """The middle of the template, where CSF is ventricle: an ellipsoid with axes in shares of half the grid."""
    axes = [np.linspace(-1, 1, length) for length in shape]
    across, ahead, up = np.meshgrid(*axes, indexing="ij")
    across_part = (across / 0.4) ** 2
    ahead_part = ((ahead - 0.05) / 0.45) ** 2
    up_part = (up / 0.35) ** 2
    return across_part + ahead_part + up_part < 1


def _warp(image: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Sample the image at each voxel's position plus its displacement."""
    places = np.indices(image.shape, np.float32) + displacement
    return ndimage.map_coordinates(image, places, order=1, mode="constant")


def _folded(
    rng: np.random.Generator, csf: np.ndarray, grey: np.ndarray, white: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vary the folding of the cortex: grey matter grows where white matter shrinks; each voxel keeps its total."""
    folding = smooth_noise(rng, csf.shape, 7.0 / spacing_mm)
    more_grey = grey * np.exp(0.35 * folding)
    less_white = white * np.exp(-0.35 * folding)
    folded = np.stack([csf, more_grey, less_white])
    total_before = csf + grey + white
    total_after = np.maximum(folded.sum(0), 1e-6)
    csf, grey, white = folded * total_before / total_after
    return csf, grey, white


def _sharpen(fractions: np.ndarray) -> np.ndarray:
    """Undo the blur of the population average: square the fractions, but keep each voxel's total."""
    total = np.clip(fractions.sum(0), 0, 1)
    raised = np.maximum(fractions, 0) ** 2.0
    total_raised = np.maximum(raised.sum(0), 1e-6)
    return raised / total_raised * total


def _place_findings(rng: np.random.Generator, fractions: np.ndarray, person: Person, spacing_mm: float) -> None:
    """Put the person's lesions, cavities and oddities into the brain; changes ``fractions``."""
    csf, _, _, lesion = np.eye(len(TISSUES))
    white = fractions[2]  # a view: it changes with every blob
    for _ in range(person.lesions):
        _place(rng, fractions, spacing_mm, white, lesion, radius_mm=(2.0, 6.0))
    for _ in range(person.cavities):
        _place(rng, fractions, spacing_mm, white, csf, radius_mm=(5.0, 18.0))
    for _ in range(person.oddities):
        mixture = rng.dirichlet(np.full(len(TISSUES), 0.5))
        brain = fractions.sum(0)
        _place(rng, fractions, spacing_mm, brain, mixture, radius_mm=(2.0, 14.0))


def _place(
    rng: np.random.Generator,
    fractions: np.ndarray,
    spacing_mm: float,
    inside: np.ndarray,
    mixture: np.ndarray,
    radius_mm: tuple[float, float],
) -> None:
    """Put an irregular blob of a ``mixture`` of tissues at a random voxel where ``inside`` is near 1; changes
    ``fractions``."""
    candidates = np.argwhere(inside > 0.9)
    if not len(candidates):
        return
    shape = fractions.shape[1:]
    centre = candidates[rng.integers(len(candidates))]
    radius = rng.uniform(*radius_mm) / spacing_mm
    offsets = np.indices(shape) - centre.reshape(3, 1, 1, 1)
    irregular = 1 + 0.25 * smooth_noise(rng, shape, 2 * radius)
    squared_distance = (offsets**2).sum(0)
    distance = np.sqrt(squared_distance) * irregular
    blob = np.clip(radius - distance + 0.5, 0, 1)
    share = blob * np.minimum(fractions.sum(0), 1)
    fractions *= 1 - share
    fractions += mixture[:, None, None, None] * share


def _scalp(rng: np.random.Generator, brain: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Fat and skin: a shell outside a skull of random thickness."""
    outside_brain = brain < 0.5
    distance_mm = ndimage.distance_transform_edt(outside_brain) * spacing_mm
    skull_mm = rng.uniform(4, 9)
    skin_mm = rng.uniform(4, 10)
    above_skull = (distance_mm - skull_mm) / spacing_mm
    below_skin = (skull_mm + skin_mm - distance_mm) / spacing_mm
    outside_skull = np.clip(above_skull, 0, 1)
    below_surface = np.clip(below_skin, 0, 1)
    return outside_skull * below_surface
