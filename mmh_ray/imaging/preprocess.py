"""From any scan to the working grid: orientation, resampling through the affine, mask, bias field, unit intensity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mmh_ray.config import GridConfig, PrepareConfig
from mmh_ray.errors import DataError
from mmh_ray.imaging.intensity import Scaling, correct_bias, quantile_function, robust_scaling, tissue_quantiles
from mmh_ray.imaging.mask import estimate_mask
from mmh_ray.imaging.volume import Volume


@dataclass(frozen=True)
class Prepared:
    """A scan on the working grid (canonical RAS axes, isotropic).

    Attributes
    ----------
    image:
        ``(X, Y, Z)`` float32 unit intensity, bias-corrected, zero outside the mask: what the model sees.
    source:
        ``(X, Y, Z)`` float32 unit intensity, neither corrected nor masked: the guide of the detail projection.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    affine:
        ``(4, 4)`` working voxel indices to millimetres.
    scaling:
        From the scan's units to unit intensity, by which both images were made.
    steps:
        What was done, in order, for the sidecar.
    """

    image: np.ndarray
    source: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    scaling: Scaling
    steps: tuple[str, ...]

    @property
    def quantiles(self) -> np.ndarray:
        """``(257,)`` quantile function of the brain's unit intensities."""
        return quantile_function(self.image[self.mask])

    @property
    def tissues(self) -> np.ndarray:
        """``(257,)`` the same after a little smoothing: see :func:`mmh_ray.imaging.intensity.tissue_quantiles`."""
        return tissue_quantiles(self.image, self.mask)


def prepare_volume(volume: Volume, mask: np.ndarray | None, grid: GridConfig, settings: PrepareConfig) -> Prepared:
    """Bring a scan to the working grid.

    Parameters
    ----------
    volume:
        The scan at its native grid.
    mask:
        ``(I, J, K)`` brain mask at the native grid; None estimates one.

    Raises
    ------
    DataError
        If the mask does not fit the scan, is empty, or leaves the scan without contrast.
    """
    steps = ["mask: given" if mask is not None else "mask: estimated"]
    mask = estimate_mask(volume) if mask is None else mask
    if mask.shape != volume.data.shape:
        raise DataError(
            f"mask of shape {mask.shape}", f"the scan's shape {volume.data.shape}", "Resample the mask to its scan."
        )
    if not mask.any():
        raise DataError(
            "an empty mask", "a mask that covers the brain", "Check the mask or leave it out to have one estimated."
        )
    affine = working_affine(volume.affine, mask, grid)
    source = to_grid(volume.data, volume.affine, affine, grid.shape)
    inside = to_grid(mask.astype(np.float32), volume.affine, affine, grid.shape) > 0.5
    if not inside.any():
        raise DataError(
            "a mask without a working voxel", "a brain larger than a few voxels", "Check the mask and the affine."
        )
    steps.append(f"resampled: {grid.spacing_mm:g} mm RAS {tuple(grid.shape)}")
    image = source
    if settings.n4:
        image = correct_bias(source, inside, (grid.spacing_mm,) * 3, settings.n4_iterations)
        steps.append(f"bias field: N4 {tuple(settings.n4_iterations)}")
    scaling = robust_scaling(image, inside, settings.upper_percentile)
    steps.append(f"unit intensity: ({scaling.low:g}, {scaling.high:g}) -> (0, 1)")
    image = np.clip(scaling.apply(image), 0, 2) * inside
    return Prepared(image, scaling.apply(source), inside, affine, scaling, tuple(steps))


def working_affine(affine: np.ndarray, mask: np.ndarray, grid: GridConfig) -> np.ndarray:
    """Affine of the working grid, centred on the mask's bounding box in world coordinates.

    The centre moves by at most half a voxel of the scan so that the grid's first voxel lies on one of the scan's: a scan of the grid's own
    spacing and axes is then only cropped or padded, not blurred by interpolation.
    """
    occupied = [np.flatnonzero(mask.any(axis=tuple(set(range(3)) - {axis}))) for axis in range(3)]
    centre = affine @ np.array([*((float(index[0]) + float(index[-1])) / 2 for index in occupied), 1.0])
    working = np.diag([grid.spacing_mm] * 3 + [1.0])
    working[:3, 3] = centre[:3] - grid.spacing_mm * (np.array(grid.shape) - 1) / 2
    first = np.linalg.inv(affine) @ working[:, 3]
    working[:3, 3] = (affine @ [*np.round(first[:3]), 1.0])[:3]
    return working


def to_grid(data: np.ndarray, affine: np.ndarray, target_affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample ``(I, J, K)`` data to another grid: anti-aliased where the target is coarser, linear, zero outside."""
    step = np.linalg.inv(affine) @ target_affine
    size = np.linalg.norm(step[:3, :3], axis=1)  # source voxels crossed by one target voxel, per source axis
    sigma = 0.4 * np.sqrt(np.maximum(size**2 - 1, 0))
    smooth = ndimage.gaussian_filter(data.astype(np.float32), sigma) if sigma.any() else data.astype(np.float32)
    return ndimage.affine_transform(smooth, step, output_shape=tuple(shape), order=1, mode="grid-constant")


def from_grid(data: np.ndarray, affine: np.ndarray, native_affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample working-grid data to a native grid: linear, continued outside by its nearest voxel."""
    step = np.linalg.inv(affine) @ native_affine
    return ndimage.affine_transform(data.astype(np.float32), step, output_shape=tuple(shape), order=1, mode="nearest")
