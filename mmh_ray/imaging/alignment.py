"""Aligns the template with a scan: selects starts, maximises mutual information with ITK, and rates the result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage

from mmh_ray.imaging.smoothing import smooth_inside
from mmh_ray.imaging.template import template
from mmh_ray.threads import one_thread

WHOLE = 0.5
"""Part of the brain that a scan must show for a fit to be accepted."""
CUT = 0.25
"""The same for a brain that the field of view is known to cut."""
_SIZES = (0.5, 1.3)
"""Smallest and largest volume of a brain, as a share of the template's, with which an alignment is accepted."""
_SURE = 0.5
"""Quality below which another start is tried."""
_HOPELESS = 0.1
"""Quality of a similarity transform below which no affine one is tried."""
_TRIED = 6
"""Largest number of starts that are tried."""
_BRAIN_ALONE = (0,)
"""Margins that exclude everything around the brain."""
_BLUR = (2.0, 6.0)
"""Standard deviations, in template voxels, of the band-pass filter under which starts are compared."""
_LOCAL = 4.0
"""Standard deviation, in template voxels, of the window whose mean is subtracted before contrast is compared."""
_EVERY_THIRD = (slice(None, None, 3),) * 3


@one_thread()
def align(
    data: np.ndarray,
    affine: np.ndarray,
    starts: Sequence[np.ndarray],
    margins: tuple[int, ...],
    least_seen: float = WHOLE,
) -> tuple[np.ndarray, float]:
    """Find the best affine ``(4, 4)``, template millimetres to the scan's, and its quality by :func:`match`.

    The quality is 0 if no alignment was found.

    Parameters
    ----------
    data, affine:
        ``(I, J, K)`` and ``(4, 4)``: the scan on a grid of about the template's spacing, with world axes.
    starts:
        ``(4, 4)`` each; only the few most promising ones are optimised.
    margins:
        For each affine pass, how many template voxels around the template's brain are compared. These surroundings can
        mislead: the template has none, and on a T2w a bright scalp behind a dark skull draws the outline outwards.
        So each start is also tried without them.
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

    The scan is regressed on the template's shares of grey matter, white matter and fluid, over the part of the
    template's brain that the scan shows. All are smoothed and high-pass filtered first. The result is the coefficient
    of determination. So it does not depend on the sequence, the unit or the receive field.

    Parameters
    ----------
    data, affine:
        ``(I, J, K)`` and ``(4, 4)``: the scan on a grid of about the template's spacing.
    matrix:
        ``(4, 4)`` template millimetres to the scan's.
    least_seen:
        Part of the brain that the scan must show; the result is 0 if it shows less.
    """
    icbm = template()
    shape = icbm.image.shape
    step = np.linalg.inv(affine) @ matrix @ icbm.affine
    ones = np.ones_like(data)
    seen = ndimage.affine_transform(ones, step, output_shape=shape, order=0)
    region = icbm.deep & (seen > 0)
    if region.sum() < least_seen * icbm.deep.sum():
        return 0.0
    scan = ndimage.affine_transform(data, step, output_shape=shape, order=1)
    contrast = _local_contrast(scan, region)
    is_whole = region.sum() == icbm.deep.sum()
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
    """:func:`_design` of the whole deep brain. Cached: most scans show all of it, and each start needs it twice."""
    return _design(template().deep)


def _design(region: np.ndarray) -> np.ndarray:
    """``(n, 3)`` float64: local contrast of the template's tissues in the region's voxels."""
    tissue_contrasts = [_local_contrast(tissue, region) for tissue in template().tissues]
    return np.stack(tissue_contrasts, axis=1)


def _local_contrast(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Smoothed intensity minus its mean in a window, ``(n,)`` float64 for the region's voxels, centred at 0."""
    smooth = ndimage.gaussian_filter(image, 1.0)
    window_mean = smooth_inside(smooth, region, _LOCAL, least_weight=1e-3)
    contrast = (smooth - window_mean)[region].astype(np.float64)
    return contrast - contrast.mean()


def _promising(data: np.ndarray, affine: np.ndarray, starts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Select the starts to optimise: the best one, the first two of the list, then the next best.

    They are compared as in :func:`match`, but on every third voxel of strongly smoothed contrast.
    """
    icbm = template()
    inside = icbm.brain[_EVERY_THIRD]
    basis = _coarse_basis()
    places_mm = apply_affine(icbm.affine, np.argwhere(inside) * 3)
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
    """``(n, 3)`` orthonormal columns that span the blurred contrasts of the template's tissues.

    The rows are every third voxel of the template's brain along each axis.
    """
    icbm = template()
    inside = icbm.brain[_EVERY_THIRD]
    tissue_contrasts = []
    for tissue in icbm.tissues:
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
    """Optimise from one start: a similarity transform, then an affine one for each margin. None if that fails."""
    icbm = template()
    fixed = _to_sitk(icbm.image, icbm.affine)
    moving = _to_sitk(data, affine)
    regions = [_region(margin) for margin in margins]
    similarity = sitk.Similarity3DTransform()
    similarity.SetCenter(icbm.middle.tolist())
    similarity.SetMatrix(start[:3, :3].ravel().tolist(), 1e-6)
    middle_in_scan = (start @ [*icbm.middle, 1.0])[:3]
    similarity.SetTranslation((middle_in_scan - icbm.middle).tolist())
    try:
        _optimise(fixed, moving, regions[0], similarity, [3, 2])
        transform = sitk.AffineTransform(similarity.GetMatrix(), similarity.GetTranslation(), similarity.GetCenter())
        if not _is_brain_sized(transform):
            return None
        if match(data, affine, _matrix(transform), least_seen) < _HOPELESS:
            return None
        for region in regions:
            _optimise(fixed, moving, region, transform, [2])
    except RuntimeError:  # ITK raises this if too few voxels of the region lie in the scan
        return None
    return _matrix(transform) if _is_brain_sized(transform) else None


def _is_brain_sized(transform: sitk.AffineTransform) -> bool:
    smallest, largest = _SIZES
    volume_ratio = np.linalg.det(_matrix(transform)[:3, :3])
    return bool(smallest < volume_ratio < largest)


def _matrix(transform: sitk.AffineTransform) -> np.ndarray:
    return from_matvec(np.reshape(transform.GetMatrix(), (3, 3)), transform.TransformPoint((0.0, 0.0, 0.0)))


@cache
def _region(margin: int) -> sitk.Image:
    """The region in which images are compared: the template's brain, dilated by ``margin`` voxels."""
    icbm = template()
    region = icbm.brain
    if margin:
        region = ndimage.binary_dilation(region, iterations=margin)
    return _to_sitk(region.astype(np.uint8), icbm.affine)


def _optimise(
    fixed: sitk.Image, moving: sitk.Image, region: sitk.Image, transform: sitk.Transform, shrink: list[int]
) -> None:
    """Maximise the mutual information inside the region; changes the transform in place."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(region)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5, 1)  # fixed seed: the default is the time of day
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.005, 200, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([float(factor - 1) for factor in shrink])
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)


def _to_sitk(data: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Convert a grid with RAS axes to an ITK image that uses the same millimetres (ITK itself assumes LPS)."""
    spacing = np.diag(affine)[:3]
    origin = affine[:3, 3]
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    return image
