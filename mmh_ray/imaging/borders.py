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
    return region & np.isin(labels, faces_of(labels))


def reaching_edges(region: np.ndarray) -> np.ndarray:
    """The connected parts of a region that touch an edge of the volume."""
    labels, _ = ndimage.label(region)
    return region & np.isin(labels, edges_of(labels))


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask dilated by one voxel in every direction, including diagonals."""
    numbers = mask.view(np.uint8)
    wider = ndimage.maximum_filter(numbers, 3)
    return wider.view(bool)
