"""Borders of volumes and masks: faces, edges, and the regions that touch them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def faces_of(data: np.ndarray) -> np.ndarray:
    """All voxels of the six faces of a volume, ``(n,)``."""
    faces = []
    for axis in range(3):
        for end in (0, -1):
            # `np.take` would copy the whole volume if its first axis is the contiguous one, as in files.
            face = np.moveaxis(data, axis, 0)[end]
            faces.append(face.ravel())
    return np.concatenate(faces)


def edges_of(data: np.ndarray) -> np.ndarray:
    """All voxels of the twelve edges of a volume, ``(n,)``."""
    edges = []
    for axis in range(3):
        along_axis = np.moveaxis(data, axis, 0)
        for second_end in (0, -1):
            for third_end in (0, -1):
                edges.append(along_axis[:, second_end, third_end])
    return np.concatenate(edges)


def reaching_faces(region: np.ndarray) -> np.ndarray:
    """The connected parts of a region that touch a face of the volume."""
    labels, _ = ndimage.label(region)
    return _parts(labels, faces_of(labels))


def reaching_edges(region: np.ndarray) -> np.ndarray:
    """The connected parts of a region that touch an edge of the volume."""
    labels, _ = ndimage.label(region)
    return _parts(labels, edges_of(labels))


def _parts(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where the labels are among the chosen ones; 0 is no part."""
    numbers = np.setdiff1d(chosen, [0])
    return np.isin(labels, numbers)


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask dilated by one voxel in every direction, including diagonals."""
    numbers = mask.view(np.uint8)
    wider = ndimage.maximum_filter(numbers, 3)
    return wider.view(bool)
