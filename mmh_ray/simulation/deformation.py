"""A label map deformed at random and rendered as tissue shares on the working grid.

Shapes: ``T`` tissues, ``X Y Z`` the working grid, ``f`` fine points along each edge of its voxels.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmh_ray.config import GridConfig
from mmh_ray.simulation.anatomy import smooth_noise
from mmh_ray.simulation.label_maps import PULL_MM, LabelMap
from mmh_ray.simulation.person import Person
from mmh_ray.simulation.tissues import AIR, TISSUES


def deformed_shares(label_map: LabelMap, person: Person, grid: GridConfig, rng: np.random.Generator) -> np.ndarray:
    """Tissue shares ``(T, X, Y, Z)`` float32 of the deformed map: each voxel counts the labels at ``f**3`` points."""
    factor = max(2, round(grid.spacing_mm))
    places = _places(label_map, person, grid, rng)
    fine_places = np.stack([_finer(part, factor) for part in places])
    channels = ndimage.map_coordinates(label_map.channels, fine_places, order=0, mode="constant", cval=AIR)
    voxels = int(np.prod(grid.shape))
    voxel = np.arange(voxels).reshape(grid.shape)
    for axis in range(3):
        voxel = np.repeat(voxel, factor, axis=axis)
    kinds = len(TISSUES) + 1  # air, too
    count = np.bincount(voxel.ravel() * kinds + channels.ravel(), minlength=voxels * kinds)
    without_air = count.reshape(*grid.shape, kinds)[..., :-1]
    shares = without_air.astype(np.float32) / factor**3
    return np.ascontiguousarray(np.moveaxis(shares, -1, 0))


def _places(label_map: LabelMap, person: Person, grid: GridConfig, rng: np.random.Generator) -> np.ndarray:
    """Voxel of the label map ``(3, X, Y, Z)`` at each point of the grid: size, turn, bends of 50 and 20 mm, ventricles.

    All of them are smooth, so they are drawn on the grid and interpolated between its points.
    """
    axes_mm = [(np.arange(n) - (n - 1) / 2) * grid.spacing_mm for n in grid.shape]
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0, 1.0])
    size = np.exp(rng.normal(0.0, 0.05) + rng.normal(0, 0.04, 3))
    turn = Rotation.from_euler("xyz", rng.normal(0, person.turn_degrees, 3), degrees=True).as_matrix()
    matrix = mirror @ turn @ np.diag(size)
    centre = label_map.centre
    if person.shift_mm:
        centre = centre + rng.normal(0, person.shift_mm, 3)
    places = np.zeros((3, *grid.shape), np.float32)
    for row in range(3):
        across = matrix[row, 0] * axes_mm[0]
        ahead = matrix[row, 1] * axes_mm[1]
        up = matrix[row, 2] * axes_mm[2]
        wide = smooth_noise(rng, grid.shape, 50 / grid.spacing_mm)
        narrow = smooth_noise(rng, grid.shape, 20 / grid.spacing_mm)
        places[row] = across[:, None, None] + ahead[:, None] + up + centre[row]
        places[row] += rng.uniform(1.0, 3.5) * wide + rng.uniform(0.3, 1.3) * narrow
    _widen_ventricles(places, label_map, person.ventricles)
    return places


def _widen_ventricles(places: np.ndarray, label_map: LabelMap, enlargement: float) -> None:
    """Move the places around the ventricles towards them, in place."""
    steps = int(np.ceil(enlargement))
    for _ in range(steps):  # in one long step points would pass the ventricle and find tissue behind it
        here = places / PULL_MM
        for row in range(3):
            pulled = ndimage.map_coordinates(label_map.pull[row], here, order=1, mode="nearest")
            places[row] += enlargement / steps * 5.0 * pulled


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
