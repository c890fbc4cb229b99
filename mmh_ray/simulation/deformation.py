"""Deforms a label map at random and converts it to tissue shares on the working grid.

Shapes: ``T`` tissues, ``X Y Z`` the working grid, ``f`` sampling points along each edge of its voxels.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmh_ray.config import GridConfig
from mmh_ray.simulation.anatomy import smooth_noise
from mmh_ray.simulation.head_traits import HeadTraits
from mmh_ray.simulation.label_maps import PULL_MM, LabelMap
from mmh_ray.simulation.tissues import AIR, TISSUES


def deformed_shares(label_map: LabelMap, traits: HeadTraits, grid: GridConfig, rng: np.random.Generator) -> np.ndarray:
    """Tissue shares ``(T, X, Y, Z)`` float32 of the deformed map, from the labels at ``f**3`` points per voxel."""
    factor = max(2, round(grid.spacing_mm))
    places = _places(label_map, traits, grid, rng)
    fine_places = np.stack([_finer(part, factor) for part in places])
    channels = ndimage.map_coordinates(label_map.channels, fine_places, order=0, mode="constant", cval=AIR)
    voxels = int(np.prod(grid.shape))
    voxel = np.arange(voxels).reshape(grid.shape)
    for axis in range(3):
        voxel = np.repeat(voxel, factor, axis=axis)
    kinds = len(TISSUES) + 1  # including air
    pair = voxel.ravel() * kinds + channels.ravel()  # one number for a voxel and a tissue
    count = np.bincount(pair, minlength=voxels * kinds)
    by_voxel = count.reshape(*grid.shape, kinds)
    without_air = by_voxel[..., :-1]
    shares = without_air.astype(np.float32) / factor**3
    tissues_first = np.moveaxis(shares, -1, 0)
    return np.ascontiguousarray(tissues_first)


def _places(label_map: LabelMap, traits: HeadTraits, grid: GridConfig, rng: np.random.Generator) -> np.ndarray:
    """Position in the label map ``(3, X, Y, Z)`` in voxels for each voxel of the grid.

    Combines size, rotation, smooth bends of 50 and 20 mm, and wider ventricles. All are smooth, so they are drawn on
    the grid and later interpolated between its voxels.
    """
    across_mm, ahead_mm, up_mm = axes_mm(grid.shape, grid.spacing_mm)
    matrix = _random_pose(traits.turn_degrees, rng)
    centre = label_map.centre
    if traits.shift_mm:
        centre = centre + rng.normal(0, traits.shift_mm, 3)
    places = np.zeros((3, *grid.shape), np.float32)
    for row in range(3):
        to_across, to_ahead, to_up = matrix[row]
        across = to_across * across_mm
        ahead = to_ahead * ahead_mm
        up = to_up * up_mm
        wide = smooth_noise(rng, grid.shape, 50 / grid.spacing_mm)
        narrow = smooth_noise(rng, grid.shape, 20 / grid.spacing_mm)
        places[row] = across[:, None, None] + ahead[:, None] + up + centre[row]
        wide_mm = rng.uniform(1.0, 3.5)
        narrow_mm = rng.uniform(0.3, 1.3)
        places[row] += wide_mm * wide + narrow_mm * narrow
    _widen_ventricles(places, label_map, traits.ventricles)
    return places


def axes_mm(shape: tuple[int, ...], spacing_mm: float) -> list[np.ndarray]:
    """Distances from the middle of a grid along each of its axes, in mm."""
    axes = []
    for length in shape:
        middle = (length - 1) / 2
        axes.append((np.arange(length) - middle) * spacing_mm)
    return axes


def _random_pose(turn_degrees: float, rng: np.random.Generator) -> np.ndarray:
    """``(3, 3)`` random pose of a head: mirrored or not, slightly rotated, with random size and proportions."""
    side = rng.choice([-1.0, 1.0])
    log_size = rng.normal(0.0, 0.05)
    log_proportions = rng.normal(0, 0.04, 3)
    size = np.exp(log_size + log_proportions)
    angles = rng.normal(0, turn_degrees, 3)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    mirror = np.diag([side, 1.0, 1.0])
    return mirror @ turn @ np.diag(size)


def _widen_ventricles(places: np.ndarray, label_map: LabelMap, enlargement: float) -> None:
    """Enlarge the ventricles: move the positions around them towards them; changes ``places``."""
    steps = int(np.ceil(enlargement))
    for _ in range(steps):  # in one long step, points would pass the ventricle and hit tissue beyond it
        here = places / PULL_MM
        for row in range(3):
            pull = label_map.pull[row]
            pulled = ndimage.map_coordinates(pull, here, order=1, mode="nearest")
            places[row] += enlargement / steps * 5.0 * pulled


def _finer(values: np.ndarray, factor: int) -> np.ndarray:
    """Linear interpolation at ``factor`` evenly spaced points per voxel and axis, extrapolated at the ends."""
    for axis in range(3):
        length = values.shape[axis]
        numbers = np.arange(factor * length) + 0.5
        points = numbers / factor - 0.5
        low = np.floor(points).astype(int)
        low = np.clip(low, 0, length - 2)
        shape = [1, 1, 1]
        shape[axis] = -1
        weight = (points - low).reshape(shape).astype(np.float32)
        values_low = np.take(values, low, axis)
        values_high = np.take(values, low + 1, axis)
        values = values_low * (1 - weight) + values_high * weight
    return values
