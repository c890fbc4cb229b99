"""Anatomies: whole heads from label maps, deformed at random, and brains of ICBM-152, with age, lesions, tumours, resections and cavities.

Shapes: ``T`` tissues (:data:`mmh_ray.simulation.tissues.TISSUES`), ``X Y Z`` the working grid (R, A, S).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import nibabel.processing
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmh_ray.config import GridConfig
from mmh_ray.errors import DataError
from mmh_ray.imaging.grid import working_affine
from mmh_ray.simulation import anatomy
from mmh_ray.simulation.anatomy import smooth_noise
from mmh_ray.simulation.tissues import (
    AIR,
    BRAIN,
    ENHANCING,
    FAT,
    FLUID,
    GREY,
    LESION,
    ODDITY,
    SOFT,
    TISSUES,
    WHITE,
    freesurfer_channels,
)

_VENTRICLES = (4, 5, 14, 43, 44)
"""FreeSurfer's numbers of what grows where ventricles are wide."""
_CANAL_MM = 9
"""Fluid this far from brain tissue lies in the spinal canal."""
_DURA_MM = 4.0
"""Radius that closes the dura between the halves of a brain, as tools do."""


@dataclass(frozen=True)
class Person:
    """What makes an anatomy, besides its label map and the random shape of its ``seed``."""

    seed: int
    ventricles: float = 0.0
    """Enlargement of the ventricles, 0 none to 3 extreme hydrocephalus."""
    atrophy: float = 0.0
    """Share of the grey matter beside fluid that is lost, 0 to .6."""
    lesions: int = 0
    """White-matter lesions."""
    cavities: int = 0
    """Fluid-filled cysts or resection cavities."""
    tumours: int = 0
    """Masses with an enhancing rim, a core and oedema around them."""
    oddities: int = 0
    """Blobs of a mixture of tissues that no atlas knows: what a model must not explain away."""
    turn_degrees: float = 3.0
    """Standard deviation of the head's rotation about each axis; the default is that of a head upright on the working grid."""
    shift_mm: float = 0.0
    """Standard deviation of the head's place along each axis."""


@dataclass(frozen=True)
class Head:
    """Tissue shares of one person on the working grid.

    Attributes
    ----------
    fractions:
        ``(T, X, Y, Z)`` float16; they sum to 1 where there is no air.
    texture:
        ``(X, Y, Z)`` float32 factor of the signal, about 1: tissue is never quite even.
    brain:
        ``(X, Y, Z)`` bool, more than half brain, with the fluid around it.
    depth_mm:
        ``(X, Y, Z)`` float32 distance from the brain's surface, positive inside.
    hull:
        ``(X, Y, Z)`` bool, brain tissue with its furrows and ventricles, without the fluid around it.
    """

    fractions: np.ndarray
    texture: np.ndarray
    brain: np.ndarray
    depth_mm: np.ndarray
    hull: np.ndarray


@dataclass(frozen=True)
class LabelMap:
    """A head at 1 mm, RAS axes.

    Attributes
    ----------
    channels:
        ``(I, J, K)`` uint8 tissue channel, :data:`AIR` where there is no signal.
    centre:
        ``(3,)`` voxel in the middle of the brain.
    pull:
        ``(3, i, j, k)`` float32, at 4 mm: the direction in which the ventricles lie.
    """

    channels: np.ndarray
    centre: np.ndarray
    pull: np.ndarray


PULL_MM = 4
"""Voxel edge of :attr:`LabelMap.pull`."""
_FURROW_MM = 15.0
"""Half the width of a furrow that the hull of a brain closes."""


@lru_cache(maxsize=32)
def read_label_map(path: str) -> LabelMap:
    """Read a map in FreeSurfer's numbering (see :mod:`mmh_ray.simulation.tissues`) and cut it to its head."""
    image = nib.as_closest_canonical(nib.load(path))
    if not np.allclose(image.header.get_zooms()[:3], 1.0, atol=0.01):
        image = nib.processing.resample_to_output(image, (1.0, 1.0, 1.0), order=0)
    labels = np.asarray(image.dataobj).astype(np.int64)
    channels = freesurfer_channels()[np.clip(labels, 0, 65535)].astype(np.uint8)
    occupied = np.argwhere(ndimage.zoom(channels != AIR, 0.25, order=0)) * 4
    first = np.maximum(occupied.min(axis=0) - 4, 0)
    last = np.minimum(occupied.max(axis=0) + 8, channels.shape)
    box = tuple(slice(start, stop) for start, stop in zip(first, last, strict=True))
    channels = channels[box]
    channels[_spinal(channels)] = SOFT
    brain = np.isin(channels, BRAIN)
    inner = np.argwhere(brain)
    centre = (inner.min(axis=0) + inner.max(axis=0)) / 2
    ventricles = np.isin(labels[box], _VENTRICLES).astype(np.float32)
    soft = ndimage.gaussian_filter(ventricles, 6.0)[::PULL_MM, ::PULL_MM, ::PULL_MM]
    pull = np.stack(np.gradient(soft)).astype(np.float32)
    pull /= max(float(np.abs(pull).max()), 1e-6)
    return LabelMap(channels, centre, pull)


def _spinal(channels: np.ndarray) -> np.ndarray:
    """Fluid far from any brain tissue, ``(I, J, K)`` bool: the spinal canal, which no mask of a brain holds."""
    coarse = channels[::2, ::2, ::2]
    tissue = np.isin(coarse, [channel for channel in BRAIN if channel != FLUID])
    far = 2 * ndimage.distance_transform_edt(~tissue) > _CANAL_MM
    whole = np.repeat(np.repeat(np.repeat(far, 2, 0), 2, 1), 2, 2)[tuple(slice(n) for n in channels.shape)]
    return (channels == FLUID) & whole


def simulate_head(label_map: LabelMap, person: Person, grid: GridConfig) -> Head:
    """Deform a head, render it finer than the grid, and place what ails it; the same person gives the same bytes."""
    rng = np.random.default_rng([person.seed, 17])
    factor = max(2, round(grid.spacing_mm))
    fractions = _rendered(label_map, person, grid, factor, rng)
    _thin_cortex(fractions, person.atrophy, grid.spacing_mm)
    _give_fat(fractions, grid.spacing_mm, rng)
    hull = hull_of(fractions, grid.spacing_mm)
    _place_all(fractions, person, grid.spacing_mm, rng)
    return finished(fractions, hull, grid.spacing_mm, rng)


def template_head(person: Person, grid: GridConfig) -> Head:
    """A brain of ICBM-152's tissue shares, deformed: no skull and no deep nuclei, but no label map is needed either."""
    rng = np.random.default_rng([person.seed, 18])
    age = 20 + 120 * person.atrophy
    drawn = anatomy.Person(person.seed, age=age, ventricles=person.ventricles)
    found = anatomy.simulate_anatomy(drawn, grid.spacing_mm)
    affine = working_affine(found.affine, found.brain, grid)
    first = np.round(np.linalg.inv(found.affine) @ affine[:, 3])[:3].astype(int)
    fractions = np.zeros((len(TISSUES), *grid.shape), np.float32)
    for channel, share in zip((FLUID, GREY, WHITE), found.fractions, strict=False):
        fractions[channel] = _cropped(share, first, grid.shape)
    hull = hull_of(fractions, grid.spacing_mm)
    _place_all(fractions, person, grid.spacing_mm, rng)
    return finished(fractions, hull, grid.spacing_mm, rng)


def _cropped(values: np.ndarray, first: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A box of a shape from the voxel ``first``, which may lie outside; zero where nothing is."""
    after = [max(0, start + size - n) for start, size, n in zip(first, shape, values.shape, strict=True)]
    before = [max(0, -start) for start in first]
    padded = np.pad(values, list(zip(before, after, strict=True)))
    box = tuple(slice(start + more, start + more + n) for start, more, n in zip(first, before, shape, strict=True))
    return padded[box]


def hull_of(fractions: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Brain tissue with its furrows and ventricles, ``(X, Y, Z)`` bool; taken before cavities are placed, which it must hold."""
    with_fluid = fractions[list(BRAIN)].sum(axis=0)
    tissue = with_fluid - fractions[FLUID] > 0.5
    hull = tissue | (_closed(tissue, spacing_mm, _FURROW_MM) & (with_fluid > 0.5))
    across = ndimage.generate_binary_structure(2, 1)
    for axis in (1, 2):  # wide ventricles are open to the cisterns, but closed in coronal or axial slices
        hull |= ndimage.binary_fill_holes(hull, np.expand_dims(across, axis))
    return _closed(hull, spacing_mm, _DURA_MM)


def depth(inside: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Distance from the surface of a region ``(X, Y, Z)`` bool in mm, float32, positive inside."""
    inward = ndimage.distance_transform_edt(inside) - 0.5
    outward = ndimage.distance_transform_edt(~inside) - 0.5
    return (np.where(inside, inward, -outward) * spacing_mm).astype(np.float32)


def finished(fractions: np.ndarray, hull: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> Head:
    """A head of its fractions ``(T, X, Y, Z)``: texture, brain and depth."""
    brain = fractions[list(BRAIN)].sum(axis=0) > 0.5
    brain = _closed(brain, spacing_mm, _DURA_MM)
    depth_mm = depth(brain, spacing_mm)
    fine = smooth_noise(rng, brain.shape, 4.0 / spacing_mm)
    wide = smooth_noise(rng, brain.shape, 15.0 / spacing_mm)
    texture = 1 + rng.uniform(0.0, 0.03) * fine + rng.uniform(0.0, 0.03) * wide
    return Head(fractions.astype(np.float16), texture.astype(np.float32), brain, depth_mm, hull)


def _closed(brain: np.ndarray, spacing_mm: float, radius_mm: float) -> np.ndarray:
    """A region closed by a radius, without holes."""
    radius = max(1, round(radius_mm / spacing_mm))
    padded = np.pad(brain, radius)
    closed = ndimage.binary_closing(padded, ndimage.generate_binary_structure(3, 1), iterations=radius)
    return ndimage.binary_fill_holes(closed)[(slice(radius, -radius),) * 3]


def _rendered(
    label_map: LabelMap, person: Person, grid: GridConfig, factor: int, rng: np.random.Generator
) -> np.ndarray:
    """Tissue shares ``(T, X, Y, Z)`` float32 of the deformed map: each voxel counts the labels at ``factor**3`` points."""
    shape = tuple(factor * n for n in grid.shape)
    places = _places(label_map, person, grid, factor, rng)
    channels = ndimage.map_coordinates(label_map.channels, places, order=0, mode="constant", cval=AIR)
    coarse = np.arange(int(np.prod(grid.shape))).reshape(grid.shape)
    voxel = coarse
    for axis in range(3):
        voxel = np.repeat(voxel, factor, axis=axis)
    count = np.bincount(
        voxel.ravel() * (len(TISSUES) + 1) + channels.ravel(), minlength=coarse.size * (len(TISSUES) + 1)
    )
    assert channels.shape == shape
    shares = count.reshape(*grid.shape, len(TISSUES) + 1)[..., :-1].astype(np.float32) / factor**3
    return np.ascontiguousarray(np.moveaxis(shares, -1, 0))


def _places(label_map: LabelMap, person: Person, grid: GridConfig, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Voxel of the label map ``(3, fX, fY, fZ)`` at each fine point of the grid: size, turn, bends of 50 and 20 mm, ventricles.

    All of them are smooth, so they are drawn on the grid and interpolated between its points.
    """
    axes = [(np.arange(n) - (n - 1) / 2) * grid.spacing_mm for n in grid.shape]
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0, 1.0])
    size = np.exp(rng.normal(0.0, 0.05) + rng.normal(0, 0.04, 3))
    turn = Rotation.from_euler("xyz", rng.normal(0, person.turn_degrees, 3), degrees=True).as_matrix()
    matrix = mirror @ turn @ np.diag(size)
    centre = label_map.centre
    if person.shift_mm:
        centre = centre + rng.normal(0, person.shift_mm, 3)
    places = np.zeros((3, *grid.shape), np.float32)
    for row in range(3):
        across, ahead, up = (matrix[row, column] * axes[column] for column in range(3))
        wide = smooth_noise(rng, grid.shape, 50 / grid.spacing_mm)
        narrow = smooth_noise(rng, grid.shape, 20 / grid.spacing_mm)
        places[row] = across[:, None, None] + ahead[:, None] + up + centre[row]
        places[row] += rng.uniform(1.0, 3.5) * wide + rng.uniform(0.3, 1.3) * narrow
    steps = int(np.ceil(person.ventricles))
    for _ in range(steps):  # in one long step points would pass the ventricle and find tissue behind it
        here = places / PULL_MM
        for row in range(3):
            pulled = ndimage.map_coordinates(label_map.pull[row], here, order=1, mode="nearest")
            places[row] += person.ventricles / steps * 5.0 * pulled
    return np.stack([_finer(part, factor) for part in places])


def _finer(values: np.ndarray, factor: int) -> np.ndarray:
    """Linear interpolation at ``factor`` evenly spaced points in every voxel, continued at the ends."""
    for axis in range(3):
        length = values.shape[axis]
        points = (np.arange(factor * length) + 0.5) / factor - 0.5
        low = np.clip(np.floor(points).astype(int), 0, length - 2)
        shape = [1, 1, 1]
        shape[axis] = -1
        weight = (points - low).reshape(shape).astype(np.float32)
        values = np.take(values, low, axis) * (1 - weight) + np.take(values, low + 1, axis) * weight
    return values


def _thin_cortex(fractions: np.ndarray, share: float, spacing_mm: float) -> None:
    """Turn a share of the grey matter beside fluid into fluid, in place."""
    if not share:
        return
    near = np.clip(2 * ndimage.gaussian_filter(fractions[FLUID], 3.0 / spacing_mm), 0, 1)
    lost = share * fractions[GREY] * near
    fractions[FLUID] += lost
    fractions[GREY] -= lost


def _give_fat(fractions: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> None:
    """Make part of the soft tissue fat, in place: label maps do not tell muscle from it."""
    wander = smooth_noise(rng, fractions.shape[1:], 12 / spacing_mm)
    share = np.clip(rng.uniform(-0.2, 1.0) + 0.4 * wander, 0, 1).astype(np.float32)
    given = share * fractions[SOFT]
    fractions[FAT] += given
    fractions[SOFT] -= given


def _place_all(fractions: np.ndarray, person: Person, spacing_mm: float, rng: np.random.Generator) -> None:
    """Lesions, cavities, tumours and oddities, in place."""
    pure = np.eye(len(TISSUES), dtype=np.float32)
    white, brain = fractions[WHITE], fractions[list(BRAIN)].sum(axis=0)
    for _ in range(person.lesions):
        place_blob(rng, fractions, spacing_mm, white > 0.9, pure[LESION], (1.5, 7.0))
    for _ in range(person.cavities):
        inside = pure[FLUID] if rng.random() < 0.7 else pure[ODDITY]
        place_blob(rng, fractions, spacing_mm, brain > 0.95, inside, (5.0, 28.0))
    for _ in range(person.tumours):
        radius = rng.uniform(5.0, 25.0)
        centre = place_blob(rng, fractions, spacing_mm, brain > 0.95, pure[LESION], (1.5 * radius, 1.7 * radius))
        uptake = rng.uniform(0, 1) * (rng.random() < 0.6)
        rim = uptake * pure[ENHANCING] + (1 - uptake) * pure[ODDITY]
        place_blob(rng, fractions, spacing_mm, centre, rim, (radius, radius))
        core = rng.choice([FLUID, ODDITY, LESION])
        place_blob(rng, fractions, spacing_mm, centre, pure[core], (0.5 * radius, 0.85 * radius))
    for _ in range(person.oddities):
        mixture = rng.dirichlet(np.full(len(BRAIN), 0.4)).astype(np.float32)
        place_blob(rng, fractions, spacing_mm, brain > 0.95, mixture @ pure[list(BRAIN)], (2.0, 14.0))


def place_blob(
    rng: np.random.Generator,
    fractions: np.ndarray,
    spacing_mm: float,
    inside: np.ndarray,
    mixture: np.ndarray,
    radius_mm: tuple[float, float],
) -> np.ndarray:
    """Put an irregular blob of a ``mixture`` ``(T,)`` of tissues at a random voxel of ``inside``; changes ``fractions``.

    Returns
    -------
    ``(X, Y, Z)`` bool, the voxel at its centre; all False where nothing was inside.
    """
    centre = np.zeros(inside.shape, bool)
    candidates = np.flatnonzero(inside)
    if not len(candidates):
        return centre
    middle = np.unravel_index(candidates[rng.integers(len(candidates))], inside.shape)
    centre[middle] = True
    radius = rng.uniform(*radius_mm) / spacing_mm
    reach = int(np.ceil(1.8 * radius)) + 1
    box = tuple(
        slice(max(0, place - reach), min(n, place + reach + 1)) for place, n in zip(middle, inside.shape, strict=True)
    )
    offsets = np.meshgrid(
        *[np.arange(part.start, part.stop) - place for part, place in zip(box, middle, strict=True)], indexing="ij"
    )
    stretch = np.exp(rng.normal(0, 0.2, 3))
    squared = sum((offset * factor) ** 2 for offset, factor in zip(offsets, stretch, strict=True))
    distance = np.sqrt(squared) * (1 + 0.25 * smooth_noise(rng, squared.shape, max(2.0, radius)))
    part = fractions[(slice(None), *box)]
    share = np.clip(radius - distance + 0.5, 0, 1) * part[list(BRAIN)].sum(axis=0)
    part *= 1 - share
    part += mixture[:, None, None, None] * share
    return centre


def label_maps_in(folder: str | Path) -> tuple[str, ...]:
    """Paths of the label maps ``*_dseg.nii[.gz]`` in a folder, in order of their names.

    Raises
    ------
    DataError
        If there are fewer than two, as people to validate on must be others.
    """
    found = sorted(str(path) for path in Path(folder).glob("*_dseg.nii*"))
    if len(found) < 2:
        remedy = (
            "Set simulation.label_maps to a folder of whole-head label maps in FreeSurfer's numbering, or leave it out."
        )
        raise DataError(f"{folder}: {len(found)} files *_dseg.nii.gz", "2 label maps or more", remedy)
    return tuple(found)
