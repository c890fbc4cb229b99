"""Borders of volumes and masks: faces, edges, and what reaches them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def faces_of(data: np.ndarray) -> np.ndarray:
    """All voxels of the six faces of a volume, ``(n,)``."""
    parts = [np.take(data, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    return np.concatenate(parts)


def edges_of(data: np.ndarray) -> np.ndarray:
    """All voxels of the twelve edges of a volume, ``(n,)``."""
    ends = (0, -1)
    edges = [data[:, j, k] for j in ends for k in ends]
    edges += [data[i, :, k] for i in ends for k in ends]
    edges += [data[i, j, :] for i in ends for j in ends]
    return np.concatenate(edges)


def reaching_edges(region: np.ndarray) -> np.ndarray:
    """The connected parts of a region that reach an edge of the volume."""
    labels, _ = ndimage.label(region)
    reaching = np.setdiff1d(np.unique(edges_of(labels)), [0])
    return np.isin(labels, reaching)


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask wider by one voxel in every direction, diagonals too."""
    return ndimage.maximum_filter(mask.view(np.uint8), 3).view(bool)
