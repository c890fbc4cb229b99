"""Affine registration of the ICBM-152 template to a scan (Mattes mutual information), with a figure that says how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import linalg, ndimage
from scipy.spatial.transform import Rotation

from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.head import bounds, upright
from mmh_ray.imaging.template import GRID_MM, OUTPUT_AFFINE, OUTPUT_SHAPE, Template, template
from mmh_ray.imaging.volume import Volume

POOR = 0.3
"""Quality below which a registration is not believed."""

_DOUBTFUL = 0.4
"""Quality below which tilted starts are tried, too."""
_TURNS = [Rotation.from_euler(axis, angle, degrees=True).as_matrix() for axis in "xyz" for angle in (-35, 35)]
"""Tilts of the head from which they start."""
_SCALP_MM = 12.0
"""Scalp and skull above the brain, where the registration of a head starts."""
_STARTS = (0.85, 1.0)
"""Sizes of a head, as a share of the template's, from which its registration starts; ICBM-152 is larger than most brains."""
_SIZES = (0.5, 1.3)
"""Volume of a brain, as a share of the template's, within which a registration is believed."""
_SMALLEST = 0.45
"""Diameter of a brain, as a share of the template's, below which it is no brain that could be registered."""
_SAME = 0.9
"""Dice overlap of a brain with the template's from which it is taken to lie in the template's space already."""
_HEAD_MARGINS, _BRAIN_MARGINS = (3, 1), (5,)
"""Template voxels around its brain that count, in one affine pass after the other: the skull finds the place and the brain the fit; the
air around a brain without its skull shows its size."""
_MARGIN_MM = 15.0
"""Air left around a brain without its skull."""
_LOCAL = 4.0
"""Standard deviation, in template voxels, of the window whose mean is taken away before contrast is compared."""

Method = Literal["affine", "centre of mass", "given space"]


@dataclass(frozen=True)
class Registration:
    """How the template lies in a scan.

    Attributes
    ----------
    matrix:
        ``(4, 4)`` template millimetres to the scan's.
    quality:
        See :func:`match`, 0 to 1. Well aligned T1w, T2w and FLAIR scans reach 0.45 to 0.8, scans upside down, the wrong way
        round or of noise stay below 0.3.
    method:
        `affine`; `centre of mass` where that was poor: a translation only; `given space`: the scan lies in the template's space already.
    """

    matrix: np.ndarray
    quality: float
    method: Method

    @property
    def rotation(self) -> np.ndarray:
        """``(3, 3)`` the nearest rotation to the matrix: its columns are the template's axes in the scan's millimetres."""
        return linalg.polar(self.matrix[:3, :3])[0]

    @property
    def degrees(self) -> float:
        """Angle of that rotation."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self.rotation) - 1) / 2, -1, 1))))


def register_head(volume: Volume, head: np.ndarray) -> Registration:
    """Register the template to a scan with its skull.

    Parameters
    ----------
    head:
        ``(I, J, K)`` bool, the head with all it holds, from its top; nothing else counts.
    """
    known = template()
    low, high = bounds(volume, head)
    scan = _Scan(*upright(volume, head, low, high, GRID_MM))
    target = (low + high) / 2
    target[2] = high[2] - _SCALP_MM - (known.top - known.middle[2])
    return _believed(scan, target, _STARTS, _HEAD_MARGINS)


def register_brain(volume: Volume, brain: np.ndarray) -> Registration:
    """Register the template to a brain: only what lies inside ``(I, J, K)`` bool counts.

    Nothing is done where the brain overlaps the template's and agrees with it already.
    """
    known = template()
    low, high = (corner + side * _MARGIN_MM for side, corner in zip((-1, 1), bounds(volume, brain), strict=True))
    scan = _Scan(*upright(volume, brain, low, high, GRID_MM))
    mask = upright(volume.like(np.ones_like(volume.data)), brain, low, high, GRID_MM)[0] > 0.5
    if _overlap(mask, scan.affine) >= _SAME:
        agreement = match(scan.data, scan.affine, np.eye(4))
        if agreement >= POOR:
            return Registration(np.eye(4), agreement, "given space")
    centre = (volume.affine @ [*np.argwhere(brain).mean(axis=0), 1.0])[:3]
    offset = known.affine[:3, 3] + GRID_MM * np.argwhere(known.brain).mean(axis=0) - known.middle
    size = float(mask.sum() / known.brain.sum()) ** (1 / 3)
    return _believed(scan, centre - size * offset, (size,) if size > _SMALLEST else (), _BRAIN_MARGINS)


def _overlap(brain: np.ndarray, affine: np.ndarray) -> float:
    """Dice overlap of a brain, as it lies, with the template's."""
    known = template()
    there = to_grid(brain, affine, known.affine, known.brain.shape) > 0.5
    return float(2 * (there & known.brain).sum() / (there.sum() + known.brain.sum()))


def in_template_space(volume: Volume, registration: Registration, order: int) -> Volume:
    """A volume resampled once to the template's own 1 mm grid: linear (1) or cubic (3); its header says MNI (sform code 4)."""
    step = registration.matrix @ OUTPUT_AFFINE
    header = nib.Nifti1Header()
    header.set_data_shape(OUTPUT_SHAPE)
    header.set_xyzt_units("mm")
    header.set_sform(OUTPUT_AFFINE, code=4)
    header.set_qform(OUTPUT_AFFINE, code=4)
    return Volume(to_grid(volume.data, volume.affine, step, OUTPUT_SHAPE, order), OUTPUT_AFFINE, header)


def match(data: np.ndarray, affine: np.ndarray, matrix: np.ndarray) -> float:
    """Share of a scan's local contrast inside the brain that the aligned template's tissues explain, 0 to 1.

    The coefficient of determination of the linear regression of the scan on the template's shares of grey matter, white matter and
    fluid, all smoothed and high-passed, over the part of the template's brain that the scan shows. So it needs no sequence, no
    unit and no flat receive field. Zero where the scan shows less than half of the brain.

    Parameters
    ----------
    data, affine:
        ``(I, J, K)`` and ``(4, 4)`` the scan on a grid of about the template's.
    matrix:
        ``(4, 4)`` template millimetres to the scan's.
    """
    known = template()
    step = np.linalg.inv(affine) @ matrix @ known.affine
    seen = ndimage.affine_transform(np.ones_like(data), step, output_shape=known.image.shape, order=0)
    region = known.brain & (seen > 0)
    if 2 * region.sum() < known.brain.sum():
        return 0.0
    scan = ndimage.affine_transform(data, step, output_shape=known.image.shape, order=1)
    wanted, *tissues = (_local_contrast(image, region) for image in (scan, *known.tissues))
    design = np.stack(tissues, axis=1)
    left = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    total = float((wanted**2).sum())
    return max(0.0, 1 - float((left**2).sum()) / total) if total > 0 else 0.0


def _local_contrast(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(image, 1.0)
    weight = np.maximum(ndimage.gaussian_filter(region.astype(np.float32), _LOCAL), 1e-3)
    contrast = (smooth - ndimage.gaussian_filter(smooth * region, _LOCAL) / weight)[region].astype(np.float64)
    return contrast - contrast.mean()


@dataclass(frozen=True)
class _Scan:
    """``(I, J, K)`` what is registered, on a grid with world axes, and its ``(4, 4)`` affine."""

    data: np.ndarray
    affine: np.ndarray


def _believed(scan: _Scan, target: np.ndarray, sizes: tuple[float, ...], margins: tuple[int, ...]) -> Registration:
    """The best registration that starts with the template's middle at the target, mm; a mere shift to there where that is poor.

    Tilted starts are tried only where the upright ones leave a doubt.
    """
    starts = [[(size, np.eye(3)) for size in sizes], [(size, turn) for size in sizes[:1] for turn in _TURNS]]
    best = Registration(np.eye(4), 0.0, "affine")
    for size, turn in (start for group in starts if best.quality < _DOUBTFUL for start in group):
        matrix = _registered(scan, target, size, turn, margins)
        if matrix is not None and _SIZES[0] < np.linalg.det(matrix[:3, :3]) < _SIZES[1]:
            best = max(best, Registration(matrix, match(scan.data, scan.affine, matrix), "affine"), key=_quality)
    if best.quality >= POOR:
        return best
    shift = np.eye(4)
    shift[:3, 3] = target - template().middle
    return Registration(shift, match(scan.data, scan.affine, shift), "centre of mass")


def _quality(registration: Registration) -> float:
    return registration.quality


def _registered(scan: _Scan, target: np.ndarray, size: float, turn: np.ndarray, margins: tuple[int, ...]) -> np.ndarray:
    """``(4, 4)`` from one start: a similarity, then an affine in one region after the other; None where it left the scan."""
    known = template()
    fixed, moving = _to_sitk(known.image, known.affine), _to_sitk(scan.data, scan.affine)
    regions = [_region(known, margin) for margin in margins]
    start = sitk.Similarity3DTransform()
    start.SetCenter(known.middle.tolist())
    start.SetTranslation((target - known.middle).tolist())
    start.SetMatrix((size * turn).ravel().tolist())
    try:
        found = _general(_optimise(fixed, moving, regions[0], start, [3, 2]))
        for region in regions:
            found = _optimise(fixed, moving, region, found, [2])
    except RuntimeError:  # ITK's way of saying that hardly a voxel of the region lies in the scan
        return None
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(found.GetMatrix(), (3, 3))
    matrix[:3, 3] = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
    return matrix


def _region(known: Template, margin: int) -> sitk.Image:
    wider = ndimage.binary_dilation(known.brain, iterations=margin)
    return _to_sitk(wider.astype(np.uint8), known.affine)


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
    return start


def _to_sitk(data: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A grid with RAS axes as an ITK image whose millimetres are ours."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing([float(size) for size in np.diag(affine)[:3]])
    image.SetOrigin([float(value) for value in affine[:3, 3]])
    return image
