"""Registers the ICBM-152 template to a scan (affine), rates the result, and falls back to a shift if it is poor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec
from scipy import linalg
from scipy.spatial.transform import Rotation

from mmh_ray.imaging.alignment import CUT, WHOLE, align, match
from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.head import bounds, upright
from mmh_ray.imaging.template import GRID_MM, OUTPUT_AFFINE, OUTPUT_SHAPE, template
from mmh_ray.imaging.volume import Volume

POOR = 0.25
"""Quality below which a registration is not trusted."""

_TURNS = [
    Rotation.from_euler("xyz", [nod, lean, turn], degrees=True).as_matrix()
    for nod in (0, -15, 15, -30, 30, -45, 45)
    for lean, turn in ((0, 0), (20, 0), (-20, 0), (0, 20), (0, -20))
]
"""Tilts of the head from which the registration starts; people nod more than they turn."""
_SCALP_MM = 12.0
"""Thickness of scalp and skull above the brain that is assumed for the start of a head's registration."""
_STARTS = (0.85, 1.0)
"""Sizes of the brain, relative to the template, at the start; ICBM-152 is larger than most brains."""
_SMALLEST = 0.45
"""Smallest diameter of a brain, relative to the template, with which an affine registration is tried."""
_SAME = 0.9
"""Least Dice overlap with the template's brain for a brain to count as already in the template's space."""
_HEAD_MARGINS = (3, 1)
"""Template voxels around the brain that each affine pass compares: first the skull for the place, then the brain."""
_BRAIN_MARGINS = (5,)
"""The margins for a brain without its skull: the air around it shows its size."""
_MARGIN_MM = 15.0
"""Air left around a brain without its skull."""

_LEAST_SECTION = 0.05
"""A brain is cut by a face of the volume if its section there is at least this share of its mean section."""

Method = Literal["affine", "translation", "given space"]


@dataclass(frozen=True)
class Registration:
    """Position of the template in a scan.

    Attributes
    ----------
    matrix:
        ``(4, 4)`` template millimetres to the scan's.
    quality:
        See :func:`mmh_ray.imaging.alignment.match`, 0 to 1. Well aligned T1w, T2w and FLAIR scans reach 0.35 to 0.7.
        Scans that are upside down, reversed or pure noise stay below 0.15, except noise that is masked along a brain's
        outline: that outline shows the position.
    method:
        `affine`; `translation` if that was poor: the template upright and in its own size, centred on the brain or
        placed below the top of the head; `given space`: the scan was already in the template's space.
    """

    matrix: np.ndarray
    quality: float
    method: Method

    @property
    def rotation(self) -> np.ndarray:
        """``(3, 3)`` nearest rotation to the matrix; its columns are the template's axes in the scan's millimetres."""
        rotation, _ = linalg.polar(self.matrix[:3, :3])
        return rotation

    @property
    def degrees(self) -> float:
        """Angle of that rotation."""
        trace = np.trace(self.rotation)
        cosine = (trace - 1) / 2
        angle = np.arccos(np.clip(cosine, -1, 1))
        return float(np.degrees(angle))


def register_head(volume: Volume, head: np.ndarray) -> Registration:
    """Register the template to a scan with its skull.

    A scan that is already in the template's space stays there unless another position fits better.

    Parameters
    ----------
    head:
        ``(I, J, K)`` bool, the filled head from its top; voxels outside it are ignored.
    """
    icbm = template()
    low, high = bounds(volume, head)
    data, affine = upright(volume, head, low, high)
    target = (low + high) / 2
    target[2] = high[2] - _SCALP_MM - (icbm.top - icbm.middle[2])
    starts = [
        _placed(target + np.array([0, ahead, up]), size, turn)
        for turn, ahead, up, size in product(_TURNS, (0, -15, 15), (0, -20, -10, 10), _STARTS)
    ]
    registration = _registered(data, affine, starts, _HEAD_MARGINS)
    if registration.quality < POOR:
        of_cut_brain = _registered(data, affine, starts, _HEAD_MARGINS, CUT)
        if of_cut_brain.quality >= POOR:
            registration = of_cut_brain
    agreement = match(data, affine, np.eye(4))
    if agreement >= max(POOR, registration.quality):
        return Registration(np.eye(4), agreement, "given space")
    return registration


def register_brain(volume: Volume, brain: np.ndarray) -> Registration:
    """Register the template to a brain; voxels outside ``brain``, ``(I, J, K)`` bool, are ignored.

    A brain that already overlaps and matches the template's is left in place. A brain that is cut by the field of view
    is placed by the sides that are visible.
    """
    low, high = bounds(volume, brain)
    cut_low, cut_high = _cut_sides(volume, brain)
    is_cut = bool(cut_low.any() or cut_high.any())
    edge_low = low - np.where(cut_low, 0, _MARGIN_MM)
    edge_high = high + np.where(cut_high, 0, _MARGIN_MM)
    data, affine = upright(volume, brain, edge_low, edge_high)
    ones = volume.like(np.ones_like(volume.data))
    share, _ = upright(ones, brain, edge_low, edge_high)
    mask = share > 0.5
    if _overlap(mask, affine) >= _SAME:
        agreement = match(data, affine, np.eye(4))
        if agreement >= POOR:
            return Registration(np.eye(4), agreement, "given space")
    whole = _registered_whole(volume, brain, data, affine, mask)
    if not is_cut or whole.quality >= POOR:
        return whole
    starts = []
    for turn, size in product(_TURNS, _STARTS):
        middle = _anchored(low, high, cut_low, cut_high, size)
        starts.append(_placed(middle, size, turn))
    of_cut_brain = _registered(data, affine, starts, _BRAIN_MARGINS, CUT)
    return of_cut_brain if of_cut_brain.quality > whole.quality else whole


def _registered_whole(
    volume: Volume, brain: np.ndarray, data: np.ndarray, affine: np.ndarray, mask: np.ndarray
) -> Registration:
    """Register from starts that assume a whole brain: with the template's centre and volume."""
    icbm = template()
    centre_voxel = np.argwhere(brain).mean(axis=0)
    centre = volume.affine @ [*centre_voxel, 1.0]
    centre = centre[:3]
    icbm_centre_voxel = np.argwhere(icbm.brain).mean(axis=0)
    icbm_centre = icbm.affine[:3, 3] + GRID_MM * icbm_centre_voxel
    offset = icbm_centre - icbm.middle
    volume_ratio = float(mask.sum() / icbm.brain.sum())
    size = volume_ratio ** (1 / 3)
    if size < _SMALLEST:
        return _shifted(data, affine, centre - offset)
    starts = []
    for turn in _TURNS:
        middle = centre - size * turn @ offset
        starts.append(_placed(middle, size, turn))
    return _registered(data, affine, starts, _BRAIN_MARGINS)


def _cut_sides(volume: Volume, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along which world axes the field of view cuts a brain at the low and at the high end, ``(3,)`` bool each."""
    low = np.zeros(3, bool)
    high = np.zeros(3, bool)
    least_section = _LEAST_SECTION * brain.sum()  # times the number of sections
    orientation = nib.orientations.io_orientation(volume.affine)
    for axis, (world_axis, direction) in enumerate(orientation):
        sections = brain.shape[axis]
        first = np.take(brain, 0, axis).sum() * sections
        last = np.take(brain, -1, axis).sum() * sections
        is_same_way = direction > 0  # the first slice is at the low end of the world axis
        at_low, at_high = (first, last) if is_same_way else (last, first)
        low[int(world_axis)] = at_low > least_section
        high[int(world_axis)] = at_high > least_section
    return low, high


def _anchored(low: np.ndarray, high: np.ndarray, cut_low: np.ndarray, cut_high: np.ndarray, size: float) -> np.ndarray:
    """The place of the template's middle in mm if a brain between two corners is aligned by its uncut sides."""
    icbm = template()
    places_mm = apply_affine(icbm.affine, np.argwhere(icbm.brain))
    lowest = places_mm.min(axis=0)
    highest = places_mm.max(axis=0)
    by_low = low - size * (lowest - icbm.middle)
    by_high = high - size * (highest - icbm.middle)
    only_high_is_cut = cut_high & ~cut_low
    only_low_is_cut = cut_low & ~cut_high
    return np.select([only_high_is_cut, only_low_is_cut], [by_low, by_high], (by_low + by_high) / 2)


def in_template_space(volume: Volume, registration: Registration, order: int) -> Volume:
    """Resample a volume once to the template's own 1 mm grid, linear (1) or cubic (3), with the sform code for MNI."""
    step = registration.matrix @ OUTPUT_AFFINE
    header = nib.Nifti1Header()
    header.set_data_shape(OUTPUT_SHAPE)
    header.set_xyzt_units("mm")
    header.set_sform(OUTPUT_AFFINE, code=4)
    header.set_qform(OUTPUT_AFFINE, code=4)
    return Volume(to_grid(volume.data, volume.affine, step, OUTPUT_SHAPE, order), OUTPUT_AFFINE, header)


def _registered(
    data: np.ndarray,
    affine: np.ndarray,
    starts: Sequence[np.ndarray],
    margins: tuple[int, ...],
    least_seen: float = WHOLE,
) -> Registration:
    """The best registration from the starts; if that is poor, only a shift, to the place of the first start."""
    matrix, quality = align(data, affine, starts, margins, least_seen)
    if quality >= POOR:
        return Registration(matrix, quality, "affine")
    return _shifted(data, affine, (starts[0] @ [*template().middle, 1.0])[:3])


def _shifted(data: np.ndarray, affine: np.ndarray, target: np.ndarray) -> Registration:
    """The template in its own size and upright, with its middle at the target in mm."""
    upright_axes = np.eye(3)
    shift = _placed(target, 1.0, upright_axes)
    quality = match(data, affine, shift)
    return Registration(shift, quality, "translation")


def _placed(target: np.ndarray, size: float, turn: np.ndarray) -> np.ndarray:
    """``(4, 4)`` that scales the template, turns it, and moves its middle to the target in mm."""
    scaled_turn = size * turn
    return from_matvec(scaled_turn, target - scaled_turn @ template().middle)


def _overlap(brain: np.ndarray, affine: np.ndarray) -> float:
    """Dice overlap of a brain with the template's, without registration."""
    icbm = template()
    share = to_grid(brain, affine, icbm.affine, icbm.brain.shape)
    there = share > 0.5
    both = (there & icbm.brain).sum()
    total = there.sum() + icbm.brain.sum()
    return float(2 * both / total)
