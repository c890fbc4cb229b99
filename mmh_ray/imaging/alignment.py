"""Laying the template onto a scan: where to start, the optimisation of mutual information by ITK, and how good the
result is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy import ndimage

from mmh_ray.imaging.smoothing import smooth_inside
from mmh_ray.imaging.template import template
from mmh_ray.threads import one_thread

WHOLE = 0.5
"""Part of the brain that a scan must show for a fit to be believed."""
CUT = 0.25
"""The same where the field of view is known to cut the brain."""
_SIZES = (0.5, 1.3)
"""Volume of a brain, as a share of the template's, within which an alignment is believed."""
_SURE = 0.5
"""Quality below which another start is tried."""
_HOPELESS = 0.1
"""Quality of a similarity below which no affine follows."""
_TRIED = 6
"""Starts that are tried at most."""
_BRAIN_ALONE = (0,)
"""Margins that leave out all that surrounds the brain."""
_BLUR = (2.0, 6.0)
"""Standard deviations, in template voxels, of the band of detail by which starts are compared."""
_LOCAL = 4.0
"""Standard deviation, in template voxels, of the window whose mean is taken away before contrast is compared."""
_EVERY_THIRD = (slice(None, None, 3),) * 3


@one_thread()
def align(
    data: np.ndarray,
    affine: np.ndarray,
    starts: Sequence[np.ndarray],
    margins: tuple[int, ...],
    least_seen: float = WHOLE,
) -> tuple[np.ndarray, float]:
    """The best affine ``(4, 4)``, template millimetres to the scan's, and its quality, by :func:`match`; quality 0
    where there is none.

    Parameters
    ----------
    data, affine:
        ``(I, J, K)`` and ``(4, 4)`` the scan on a grid of about the template's, with world axes.
    starts:
        ``(4, 4)`` each; the few most promising ones are followed.
    margins:
        Template voxels around its brain that count, in one affine pass after the other. Where the surroundings mislead
        (the template has none; on a T2w, a bright scalp behind a dark skull draws the brain's outline outwards), a
        start is tried without them.
    least_seen:
        As in :func:`match`.
    """
    best = np.eye(4)
    best_quality = 0.0
    for start, surroundings in product(_promising(data, affine, starts), (margins, _BRAIN_ALONE)):
        matrix = _optimised(data, affine, start, surroundings, least_seen)
        if matrix is None:
            continue
        quality = match(data, affine, matrix, least_seen)
        if quality > best_quality:
            best = matrix
            best_quality = quality
        if best_quality >= _SURE:
            break
    return best, best_quality


def match(data: np.ndarray, affine: np.ndarray, matrix: np.ndarray, least_seen: float = WHOLE) -> float:
    """Share of a scan's local contrast deep inside the brain that the aligned template's tissues explain, 0 to 1.

    The coefficient of determination of the linear regression of the scan on the template's shares of grey matter, white
    matter and fluid, all smoothed and high-passed, over the part of the template's brain that the scan shows. So it
    needs no sequence, no unit and no flat receive field.

    Parameters
    ----------
    data, affine:
        ``(I, J, K)`` and ``(4, 4)`` the scan on a grid of about the template's.
    matrix:
        ``(4, 4)`` template millimetres to the scan's.
    least_seen:
        Part of the brain that the scan must show; zero where it shows less.
    """
    known = template()
    shape = known.image.shape
    step = np.linalg.inv(affine) @ matrix @ known.affine
    ones = np.ones_like(data)
    seen = ndimage.affine_transform(ones, step, output_shape=shape, order=0)
    region = known.deep & (seen > 0)
    if region.sum() < least_seen * known.deep.sum():
        return 0.0
    scan = ndimage.affine_transform(data, step, output_shape=shape, order=1)
    contrast = _local_contrast(scan, region)
    is_whole = region.sum() == known.deep.sum()
    design = _design_of_whole_brain() if is_whole else _design(region)
    weights = np.linalg.lstsq(design, contrast, rcond=None)[0]
    residual = contrast - design @ weights
    total = float((contrast**2).sum())
    if total <= 0:
        return 0.0
    unexplained = float((residual**2).sum())
    return max(0.0, 1 - unexplained / total)


@cache
def _design_of_whole_brain() -> np.ndarray:
    """:func:`_design` of the deep brain, which most scans show whole: it is asked for once or twice a start."""
    return _design(template().deep)


def _design(region: np.ndarray) -> np.ndarray:
    """``(n, 3)`` float64 local contrast of the template's tissues in the region's voxels."""
    tissue_contrasts = [_local_contrast(tissue, region) for tissue in template().tissues]
    return np.stack(tissue_contrasts, axis=1)


def _local_contrast(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Smoothed intensity less its mean in a window, ``(n,)`` float64 of the region's voxels, with mean 0."""
    smooth = ndimage.gaussian_filter(image, 1.0)
    window_mean = smooth_inside(smooth, region, _LOCAL, least_weight=1e-3)
    contrast = (smooth - window_mean)[region].astype(np.float64)
    return contrast - contrast.mean()


def _promising(data: np.ndarray, affine: np.ndarray, starts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The few starts to follow: the best, the first two of all, which guess nothing, and those after the best.

    They are compared much as by :func:`match`, but on every third voxel of strongly smoothed contrast.
    """
    known = template()
    inside = known.brain[_EVERY_THIRD]
    basis = _coarse_basis()
    places_mm = apply_affine(known.affine, np.argwhere(inside) * 3)
    to_scan = np.linalg.inv(affine)
    contrast = _blurred_contrast(data)

    def fit(start: np.ndarray) -> float:
        """Share of the scan's contrast that the template's tissues explain from this start."""
        step = to_scan @ start
        voxels = apply_affine(step, places_mm)
        values = ndimage.map_coordinates(contrast, voxels.T, order=1)
        values = values - values.mean()
        explained = ((values @ basis) ** 2).sum()
        total = max(float(values @ values), 1e-12)
        return float(explained / total)

    best, *others = sorted(starts, key=fit, reverse=True)
    first_two = starts[:2]
    ordered = {id(start): start for start in (best, *first_two, *others)}  # each once
    return list(ordered.values())[:_TRIED]


@cache
def _coarse_basis() -> np.ndarray:
    """``(n, 3)`` orthonormal columns that span the blurred contrasts of the template's tissues, in every third voxel of
    its brain."""
    known = template()
    inside = known.brain[_EVERY_THIRD]
    tissue_contrasts = []
    for tissue in known.tissues:
        coarse = _blurred_contrast(tissue)[_EVERY_THIRD]
        tissue_contrasts.append(coarse[inside])
    design = np.stack(tissue_contrasts, axis=1)
    basis, _ = np.linalg.qr(design - design.mean(axis=0))
    return basis


def _blurred_contrast(image: np.ndarray) -> np.ndarray:
    narrow, wide = _BLUR
    return ndimage.gaussian_filter(image, narrow) - ndimage.gaussian_filter(image, wide)


def _optimised(
    data: np.ndarray, affine: np.ndarray, start: np.ndarray, margins: tuple[int, ...], least_seen: float
) -> np.ndarray | None:
    """``(4, 4)`` from one start: a similarity, then an affine in one region after the other; None where it leads
    nowhere."""
    known = template()
    fixed = _to_sitk(known.image, known.affine)
    moving = _to_sitk(data, affine)
    regions = [_region(margin) for margin in margins]
    similarity = sitk.Similarity3DTransform()
    similarity.SetCenter(known.middle.tolist())
    similarity.SetMatrix(start[:3, :3].ravel().tolist(), 1e-6)
    middle_in_scan = (start @ [*known.middle, 1.0])[:3]
    similarity.SetTranslation((middle_in_scan - known.middle).tolist())
    try:
        transform = _general(_optimise(fixed, moving, regions[0], similarity, [3, 2]))
        if not _is_brain_sized(transform):
            return None
        if match(data, affine, _matrix(transform), least_seen) < _HOPELESS:
            return None
        for region in regions:
            transform = _optimise(fixed, moving, region, transform, [2])
    except RuntimeError:  # ITK's way of saying that hardly a voxel of the region lies in the scan
        return None
    return _matrix(transform) if _is_brain_sized(transform) else None


def _is_brain_sized(transform: sitk.AffineTransform) -> bool:
    smallest, largest = _SIZES
    volume_ratio = np.linalg.det(_matrix(transform)[:3, :3])
    return bool(smallest < volume_ratio < largest)


def _matrix(transform: sitk.AffineTransform) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    return matrix


@cache
def _region(margin: int) -> sitk.Image:
    """Where an image counts: the template's brain, wider by so many voxels."""
    known = template()
    region = known.brain
    if margin:
        region = ndimage.binary_dilation(region, iterations=margin)
    return _to_sitk(region.astype(np.uint8), known.affine)


def _general(transform: Any) -> sitk.AffineTransform:
    """The same transform as a general affine one."""
    general = sitk.AffineTransform(3)
    general.SetCenter(transform.GetCenter())
    general.SetMatrix(transform.GetMatrix())
    general.SetTranslation(transform.GetTranslation())
    return general


def _optimise(fixed: sitk.Image, moving: sitk.Image, region: sitk.Image, start: Any, shrink: list[int]) -> Any:
    """The transform that maximises the mutual information inside the region, from a start of the same kind."""
    method = sitk.ImageRegistrationMethod()
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
    return start


def _to_sitk(data: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A grid with RAS axes as an ITK image whose millimetres are ours."""
    spacing = np.diag(affine)[:3]
    origin = affine[:3, 3]
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    return image
