"""Draws a scan before and after harmonization, for notebooks: `mmh_ray.compare(before, after)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from mmh_ray.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLANES = ((2, "axial"), (1, "coronal"), (0, "sagittal"))
"""Axis in RAS along which a plane is cut, and the plane's name."""
_UPPER_PERCENTILE = 99.5
"""Percentile of the voxels above 0 that becomes intensity 1, as in the preparation of scans; 0 stays 0."""
_INCHES = 3.0
"""Edge of a panel."""
_MOST_DIFFERENCE = 0.5
"""Difference of scaled intensities that is shown in full colour."""


def compare(
    before: nib.spatialimages.SpatialImage, after: nib.spatialimages.SpatialImage, title: str | None = None
) -> Figure:
    """Draw a scan before, after, and their difference: a row each for an axial, a coronal and a sagittal slice.

    Each image is scaled separately (the 99.5th percentile of its voxels above 0 becomes 1), because scanners have no
    common unit. The difference is after - before of the scaled images: red is brighter afterwards, blue is darker. It
    is shown from -0.5 to 0.5. The slices go through the middle of the foreground of ``before``. Anterior or superior is
    up; the subject's left is on the left.

    Parameters
    ----------
    before, after:
        3-D images on the same grid: the same shape ``(I, J, K)``, and affines that differ by at most 0.01 mm. A last
        axis of length 1, as some scanners write it, is ignored.
    title:
        A line above the panels; none by default.

    Returns
    -------
    matplotlib.figure.Figure
        Nine panels. A notebook shows it; ``figure.savefig("compare.png")`` writes it.

    Raises
    ------
    DataError
        If an image is not 3-D, has a voxel that is not finite or nothing above 0, or the two do not share a grid.
    """
    from matplotlib.figure import Figure

    before = nib.squeeze_image(before)
    after = nib.squeeze_image(after)
    _check_one_grid(before, after)
    orientation = io_orientation(before.affine)
    old = apply_orientation(_scaled(before, "before"), orientation)
    new = apply_orientation(_scaled(after, "after"), orientation)
    spacing = nib.affines.voxel_sizes(before.affine)[np.argsort(orientation[:, 0])]
    centre = [int(np.median(indices)) for indices in np.nonzero(old > 0)]

    figure = Figure(figsize=(3 * _INCHES, 3 * _INCHES), layout="constrained")
    panels = figure.subplots(3, 3)
    for row, (axis, plane) in zip(panels, _PLANES, strict=True):
        across, up = (other for other in range(3) if other != axis)
        aspect = spacing[up] / spacing[across]
        old_slice = np.take(old, centre[axis], axis).T
        new_slice = np.take(new, centre[axis], axis).T
        grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0, "origin": "lower", "aspect": aspect}
        row[0].imshow(old_slice, **grey)
        row[1].imshow(new_slice, **grey)
        colours = grey | {"cmap": "RdBu_r", "vmin": -_MOST_DIFFERENCE, "vmax": _MOST_DIFFERENCE}
        drawn = row[2].imshow(new_slice - old_slice, **colours)
        row[0].set_ylabel(plane)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    for panel, name in zip(panels[0], ("before", "after", "after - before"), strict=True):
        panel.set_title(name)
    figure.colorbar(drawn, ax=panels[:, 2], shrink=0.6, label="scaled intensity")
    if title is not None:
        figure.suptitle(title)
    return figure


def _check_one_grid(before: nib.spatialimages.SpatialImage, after: nib.spatialimages.SpatialImage) -> None:
    for name, image in (("before", before), ("after", after)):
        if len(image.shape) != 3:
            raise DataError(f"{name} of shape {image.shape}", "a 3-D image", "Select one volume.")
    if before.shape != after.shape:
        received = f"before of shape {before.shape}, after of shape {after.shape}"
        raise DataError(received, "two images on one grid", "Harmonize with harmonize.space=native, or resample one.")
    largest_difference = np.abs(before.affine - after.affine).max()
    if largest_difference > 0.01:
        received = f"affines of before and after that differ by up to {largest_difference:.3g}"
        raise DataError(received, "two images on one grid", "Give the scan from which `after` was made.")


def _scaled(image: nib.spatialimages.SpatialImage, name: str) -> np.ndarray:
    """``(I, J, K)`` float32, scaled by the image's own foreground."""
    data = np.asarray(image.dataobj, np.float32)
    if not np.isfinite(data).all():
        raise DataError(f"{name} with NaN or infinite voxels", "finite intensities", "Replace them.")
    foreground = data[data > 0]
    if foreground.size == 0:
        raise DataError(f"{name} without a voxel above 0", "a scan", "Check the file.")
    return data / np.percentile(foreground, _UPPER_PERCENTILE)
