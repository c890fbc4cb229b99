"""Brain masks for scans that come without one."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import SimpleITK as sitk
from nilearn import datasets
from scipy import ndimage
from skimage.filters import threshold_otsu

from mmh_ray.imaging.volume import Volume

_GRID_MM = 3.0
_HEAD_MM = 190.0
"""Height of the part of a head, from its top, that holds the brain."""
_SCALP_MM = 12.0
"""Scalp and skull above the brain, where the registration starts."""
_LARGEST_BRAIN_ML = 2100.0
_STARTS = (0.85, 1.0)
"""Sizes, as a share of the template's, from which the registration starts; ICBM-152 is larger than most brains."""
_SCALES = (0.5, 1.3)
"""Volume of a brain, as a share of the template's, within which a registration is believed."""


def estimate_mask(volume: Volume) -> np.ndarray:
    """Where the scan shows brain, ``(I, J, K)`` bool.

    The brain of a scan whose skull was removed is what is not zero. On any other scan
    the ICBM-152 template is laid by affine registration (Mattes mutual information), and its brain mask, a little widened, is
    kept where the scan is brighter than air and bone.
    """
    if is_stripped(volume):
        return ndimage.binary_fill_holes(_largest(volume.data > 0))
    volume = volume.like(volume.data / np.percentile(np.abs(volume.data), 99))  # no result may hang on the units
    bright = _foreground(volume)
    to_template = np.linalg.inv(_register(volume, ndimage.binary_fill_holes(bright)))
    _, brain, affine = _template()
    step = np.linalg.inv(affine) @ to_template @ volume.affine
    near = ndimage.affine_transform(brain, step, output_shape=volume.data.shape, order=1) > 0.3
    inside = near & bright
    radius = [max(1, round(2.0 / size)) for size in volume.spacing]
    opened = ndimage.binary_opening(inside, np.ones([2 * r + 1 for r in radius]))  # cuts the bridges to the scalp
    core = _largest(opened if opened.any() else inside)
    grown = ndimage.binary_dilation(core, np.ones([2 * r + 1 for r in radius])) & near
    return ndimage.binary_fill_holes(grown)


def is_stripped(volume: Volume) -> bool:
    """Whether the skull was removed: most voxels are exactly zero, and the others are no more than a brain."""
    voxel_ml = float(np.prod(volume.spacing)) / 1000
    return float((volume.data == 0).mean()) > 0.4 and (volume.data != 0).sum() * voxel_ml < _LARGEST_BRAIN_ML


def _foreground(volume: Volume) -> np.ndarray:
    """Tissue brighter than air and bone."""
    smooth = ndimage.gaussian_filter(volume.data, [1.0 / size for size in volume.spacing])
    root = np.sqrt(
        np.clip(smooth, 0, np.percentile(smooth, 99))
    )  # evens out the classes, so that dim tissue is not lost
    return root > threshold_otsu(root)


def _register(volume: Volume, head: np.ndarray) -> np.ndarray:
    """``(4, 4)`` affine from template millimetres to the scan's."""
    template, brain, affine = _template()
    scan, scan_affine = _top_of_head(volume, head)
    fixed, moving = _to_sitk(template, affine), _to_sitk(scan, scan_affine)
    region = _to_sitk(ndimage.binary_dilation(brain > 0.5, iterations=3).astype(np.uint8), affine)
    middle = affine[:3, 3] + _GRID_MM * (np.array(template.shape) - 1) / 2
    extent = _GRID_MM * (np.array(scan.shape) - 1)
    target = scan_affine[:3, 3] + extent / 2
    target[2] = scan_affine[2, 3] + extent[2] - _SCALP_MM - (_top(brain, affine) - middle[2])

    def placed(kind: Any, scale: float | None = None) -> tuple[Any, float]:
        transform = kind()
        transform.SetCenter(middle.tolist())
        transform.SetTranslation((target - middle).tolist())
        if scale is not None:
            transform.SetScale(scale)
        return _optimise(fixed, moving, region, transform, [3, 2])

    similar = [placed(sitk.Similarity3DTransform, scale)[0] for scale in _STARTS]
    refined = [_optimise(fixed, moving, region, _general(start), [2]) for start in similar]
    believed = [(found, value) for found, value in refined if _SCALES[0] < _size(found) < _SCALES[1]]
    if believed:
        found, _ = min(believed, key=lambda pair: pair[1])
    else:  # all ran away with the size: keep the template's
        found = _general(placed(sitk.Euler3DTransform)[0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(found.GetMatrix(), (3, 3))
    matrix[:3, 3] = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
    return matrix


def _size(transform: sitk.AffineTransform) -> float:
    return float(np.linalg.det(np.reshape(transform.GetMatrix(), (3, 3))))


def _general(transform: Any) -> sitk.AffineTransform:
    """The same transform as a general affine one."""
    general = sitk.AffineTransform(3)
    general.SetCenter(transform.GetCenter())
    general.SetMatrix(transform.GetMatrix())
    general.SetTranslation(transform.GetTranslation())
    return general


def _optimise(
    fixed: sitk.Image, moving: sitk.Image, region: sitk.Image, start: Any, shrink: list[int]
) -> tuple[Any, float]:
    """The transform that maximises the mutual information inside the region, from a start of the same kind; its negative last."""
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(region)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5, 1)  # a seed: by default it is the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.005, 200, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([float(factor - 1) for factor in shrink])
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start, method.GetMetricValue()


def _top(brain: np.ndarray, affine: np.ndarray) -> float:
    """Height of the template brain's top in mm."""
    return float(affine[2, 3] + _GRID_MM * np.flatnonzero((brain > 0.5).any(axis=(0, 1)))[-1])


def _top_of_head(volume: Volume, head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scan's head, without the neck, on an upright 3 mm grid (RAS axes), and the grid's affine."""
    places = np.argwhere(_largest(head)) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    low, high = np.percentile(places, 0.5, axis=0), np.percentile(places, 99.5, axis=0)
    low[2] = max(low[2], high[2] - _HEAD_MM)
    affine = np.diag([_GRID_MM] * 3 + [1.0])
    affine[:3, 3] = low
    shape = tuple(int(n) for n in np.ceil((high - low) / _GRID_MM) + 1)
    step = np.linalg.inv(volume.affine) @ affine
    sigma = [0.4 * max(0.0, (_GRID_MM / size) ** 2 - 1) ** 0.5 for size in volume.spacing]
    smooth = ndimage.gaussian_filter(np.where(head, volume.data, 0), sigma)
    return ndimage.affine_transform(smooth, step, output_shape=shape, order=1), affine


@cache
def _template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ICBM-152 T1w brain and brain mask at 3 mm as float32, and their affine."""
    image, mask = datasets.load_mni152_template(resolution=3), datasets.load_mni152_brain_mask(resolution=3)
    return np.asarray(image.dataobj, np.float32), np.asarray(mask.dataobj).astype(np.float32), np.asarray(image.affine)


def _to_sitk(data: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A grid with RAS axes as an ITK image whose millimetres are ours."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing([float(size) for size in np.diag(affine)[:3]])
    image.SetOrigin([float(value) for value in affine[:3, 3]])
    return image


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if count > 1 else mask
