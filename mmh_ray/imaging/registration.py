"""Affine registration of the ICBM-152 template to a scan (Mattes mutual information), with a figure that says how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
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

_SURE, _DOUBTFUL = 0.6, 0.45
"""Quality below which a second start is tried, and then more of them."""
_TRIED = 4
"""Starts that are tried at most."""
_BLUR = (2.0, 6.0)
"""Standard deviations, in template voxels, of the band of detail by which starts are compared."""
_TURNS = [
    Rotation.from_euler("xyz", [nod, lean, turn], degrees=True).as_matrix()
    for nod in (0, -15, 15, -30, 30, -45, 45)
    for lean, turn in ((0, 0), (20, 0), (-20, 0), (0, 20), (0, -20))
]
"""Tilts of the head from which the registration starts; people nod more than they turn."""
_SCALP_MM = 12.0
"""Scalp and skull above the brain, where the registration of a head starts."""
_STARTS = (0.85, 0.95)
"""Sizes of a head, as a share of the template's, from which it starts; ICBM-152 is larger than most brains."""
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
    starts = [
        _placed(target + np.array([0, ahead, up]), size, turn)
        for size, turn, ahead, up in product(_STARTS, _TURNS, (0, -15, 15), (0, -20, -10, 10))
    ]
    return _believed(scan, starts, _HEAD_MARGINS)


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
    starts = [_placed(centre - size * turn @ offset, size, turn) for turn in _TURNS]
    return _believed(scan, starts, _BRAIN_MARGINS)


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


def _believed(scan: _Scan, starts: Sequence[np.ndarray], margins: tuple[int, ...]) -> Registration:
    """The best registration from the most promising starts, ``(4, 4)`` each; where that is poor, a mere shift by the first of them."""
    best = Registration(np.eye(4), 0.0, "affine")
    for number, start in enumerate(_promising(scan, starts)):
        matrix = _registered(scan, start, margins)
        if matrix is not None and _SIZES[0] < np.linalg.det(matrix[:3, :3]) < _SIZES[1]:
            best = max(best, Registration(matrix, match(scan.data, scan.affine, matrix), "affine"), key=_quality)
        if best.quality >= (_DOUBTFUL if number else _SURE):
            break
    if best.quality >= POOR:
        return best
    shift = np.eye(4)
    shift[:3, 3] = (starts[0] @ [*template().middle, 1.0])[:3] - template().middle
    return Registration(shift, match(scan.data, scan.affine, shift), "centre of mass")


def _quality(registration: Registration) -> float:
    return registration.quality


def _placed(target: np.ndarray, size: float, turn: np.ndarray) -> np.ndarray:
    """``(4, 4)`` that lays the template's middle on the target, mm, of a size and turned about it."""
    matrix = np.eye(4)
    matrix[:3, :3] = size * turn
    matrix[:3, 3] = target - matrix[:3, :3] @ template().middle
    return matrix


def _promising(scan: _Scan, starts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The few starts that fit best, the best first, by :func:`match` on every third voxel of strongly smoothed contrast."""
    known = template()
    coarse = (slice(None, None, 3),) * 3
    inside = known.brain[coarse]
    design = np.stack([_blurred_contrast(tissue)[coarse][inside] for tissue in known.tissues], axis=1)
    basis = np.linalg.qr(design - design.mean(axis=0))[0]
    places = np.argwhere(inside) * 3 @ known.affine[:3, :3].T + known.affine[:3, 3]
    contrast = _blurred_contrast(scan.data)

    def fit(start: np.ndarray) -> float:
        step = np.linalg.inv(scan.affine) @ start
        values = ndimage.map_coordinates(contrast, (places @ step[:3, :3].T + step[:3, 3]).T, order=1)
        values = values - values.mean()
        return float(((values @ basis) ** 2).sum() / max(float(values @ values), 1e-12))

    return sorted(starts, key=fit, reverse=True)[:_TRIED]


def _blurred_contrast(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image, _BLUR[0]) - ndimage.gaussian_filter(image, _BLUR[1])


def _registered(scan: _Scan, start: np.ndarray, margins: tuple[int, ...]) -> np.ndarray | None:
    """``(4, 4)`` from one start: a similarity, then an affine in one region after the other; None where it left the scan."""
    known = template()
    fixed, moving = _to_sitk(known.image, known.affine), _to_sitk(scan.data, scan.affine)
    regions = [_region(known, margin) for margin in margins]
    similar = sitk.Similarity3DTransform()
    similar.SetCenter(known.middle.tolist())
    similar.SetMatrix(start[:3, :3].ravel().tolist(), 1e-6)
    similar.SetTranslation(((start @ [*known.middle, 1.0])[:3] - known.middle).tolist())
    try:
        found = _general(_optimise(fixed, moving, regions[0], similar, [3, 2]))
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
