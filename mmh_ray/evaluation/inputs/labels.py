"""Reads a label map onto the grid of its scan, as tissues: fluid, grey matter, white matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import ndimage

from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.label_tables import UNKNOWN, TableName, label_table
from mmh_ray.evaluation.metrics.segmentation import TISSUES
from mmh_ray.imaging.grid import share_held
from mmh_ray.imaging.mask import SAME_AFFINE_MM
from mmh_ray.imaging.volume import Volume, read_volume

BRIGHTER = {
    "T1w": (("WM", "GM"), ("GM", "CSF")),
    "T2w": (("GM", "WM"), ("CSF", "GM")),
    "FLAIR": (("GM", "WM"), ("GM", "CSF")),
    "PDw": (("GM", "WM"), None),
}
"""By sequence, two pairs of tissues, the brighter first: grey and white matter, grey matter and fluid.

This is their order in adults. In PDw the brightness of fluid depends on echo and repetition time, so it is not checked.
"""

LEAST_VOXELS = 50
"""Minimum number of labelled voxels for a tissue to be measured."""
LEAST_INSIDE = 0.5
"""Minimum share of the labelled tissue in the scan's field of view, and in its brain mask.

With less, the map belongs to another scan.
"""
MOST_LISTED = 5
"""Maximum number of label numbers listed in a note."""
MOST_UNKNOWN = 0.25
"""Maximum share of labelled voxels whose numbers are not in the table; with more, it is the wrong table."""

_BY_NAME: Mapping[str, TableName] = {
    "dlmuse": "dlmuse",
    "muse": "dlmuse",
    "tissues": "tissues",
    **dict.fromkeys(("aseg", "aparc", "aparcaseg", "aparcdkt", "aparca2009s", "wmparc", "synthseg"), "freesurfer"),
}
_SETTING = "Set evaluate.label_table to freesurfer, dlmuse, tissues (1 CSF, 2 GM, 3 WM) or bids (1 GM, 2 WM, 3 CSF)."
_LEAST_FRACTION = 0.01


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The labelled tissues of a scan.

    Attributes
    ----------
    tissues:
        ``(I, J, K)`` uint8 on the scan's grid, inside its brain mask: 1 + the index in ``TISSUES``, 0 elsewhere.
    table:
        Name of the table that the map was read with.
    inside:
        Share of the labelled grey and white matter inside the brain mask, 0 to 1.
    unknown:
        Number of voxels of each label number that is not in the table.
    """

    tissues: np.ndarray
    table: TableName
    inside: float
    unknown: Mapping[int, int]

    def of(self, tissue: str) -> np.ndarray:
        """``(I, J, K)`` bool."""
        return self.tissues == TISSUES.index(tissue) + 1

    @cached_property
    def lacking(self) -> tuple[str, ...]:
        """Tissues with fewer than :data:`LEAST_VOXELS` voxels, which are not measured."""
        return tuple(tissue for tissue in TISSUES if np.count_nonzero(self.of(tissue)) < LEAST_VOXELS)

    def remarks(self) -> list[str]:
        """Notes for the reader of the evaluation, worded alike for maps with the same remark."""
        remarks = []
        if self.unknown:
            numbers = ", ".join(str(number) for number in sorted(self.unknown)[:MOST_LISTED])
            more = f" and {len(self.unknown) - MOST_LISTED} more" if len(self.unknown) > MOST_LISTED else ""
            remarks.append(f"label numbers that are not in the table {self.table} are ignored: {numbers}{more}")
        if self.lacking:
            tissues = ", ".join(self.lacking)
            remarks.append(f"fewer than {LEAST_VOXELS} labelled voxels of {tissues}: not measured")
        return remarks


def read_label_map(
    path: str,
    scan: Volume,
    mask: np.ndarray,
    sequence: str,
    table: Literal["auto"] | TableName = "auto",
    names: Sequence[str] = (),
    space: str | None = None,
) -> LabelMap:
    """Read a label map onto the grid of a scan; on another grid, the nearest label is taken through the affines.

    Parameters
    ----------
    scan, mask:
        The scan, preferably after bias field correction, and ``(I, J, K)`` bool its brain.
    table:
        ``auto`` chooses by the map's ``names``; a map with only 1, 2 and 3 and no known name is read as ``tissues``.
    names:
        Values of the map's `desc` and similar entities.
    space:
        Template space in the map's name that the scan's name lacks; the map must then have the scan's grid.

    Raises
    ------
    DataError
        If the map cannot be read, holds fractions, does not overlap the scan or its brain, or has no known table; or
        if the tissues' median intensities are not in the order of the sequence.
    """
    volume = read_volume(path)
    numbers = _whole_numbers(volume.data)
    named_table = _table_by_name(names) if table == "auto" else table
    table_name = named_table or _table_by_numbers(numbers)
    codes, unknown = _tissue_codes(numbers, table_name)
    if not np.isin(codes, (2, 3)).any():
        received = f"a label map without grey and white matter by the table {table_name}"
        raise DataError(received, "both tissues", _SETTING)
    tissues = _on_grid(codes, volume, scan, space)
    _check_order(tissues, scan.data, sequence, table_name, is_table_named=named_table is not None)
    grey_and_white = tissues >= 2
    inside = float((grey_and_white & mask).sum()) / max(int(grey_and_white.sum()), 1)
    if inside < LEAST_INSIDE:
        received = f"a label map with {inside:.0%} of its grey and white matter in the scan's brain mask"
        raise DataError(received, f"{LEAST_INSIDE:.0%} or more", "Check that it belongs to this scan, and its affine.")
    return LabelMap(tissues * mask, table_name, inside, unknown)


def _whole_numbers(data: np.ndarray) -> np.ndarray:
    """int32 labels."""
    rounded = np.rint(data)
    if float(np.abs(data - rounded).max()) > _LEAST_FRACTION:
        raise DataError("a label map that holds fractions", "whole numbers", "Name maps of probabilities *_probseg.")
    return rounded.astype(np.int32)


def _table_by_name(names: Sequence[str]) -> TableName | None:
    """The table that the map's name gives; None if it gives none."""
    for name in names:
        if name.lower() in _BY_NAME:
            return _BY_NAME[name.lower()]
    return None


def _table_by_numbers(numbers: np.ndarray) -> TableName:
    """``tissues`` if the map's numbers are exactly 1, 2 and 3."""
    if set(np.unique(numbers)) - {0} == {1, 2, 3}:
        return "tissues"
    received = f"a label map with numbers from {numbers.min()} to {numbers.max()} and no known table in its name"
    expected = f"1, 2 and 3, or desc- one of {', '.join(_BY_NAME)}"
    raise DataError(received, expected, _SETTING)


def _tissue_codes(numbers: np.ndarray, name: TableName) -> tuple[np.ndarray, dict[int, int]]:
    """uint8 tissues, and the number of voxels of each label number that is not in the table."""
    by_number = label_table(name).codes()
    is_listed = (numbers >= 0) & (numbers < by_number.size)
    codes = by_number[np.where(is_listed, numbers, 0)]
    codes[~is_listed] = UNKNOWN
    is_unknown = codes == UNKNOWN
    unknown_numbers, counts = np.unique(numbers[is_unknown], return_counts=True)
    labelled = int(np.count_nonzero(numbers))
    unknown_share = float(counts.sum()) / max(labelled, 1)
    if unknown_share > MOST_UNKNOWN:
        received = f"a label map with {1 - unknown_share:.0%} of its labelled voxels in the table {name}"
        raise DataError(received, f"{1 - MOST_UNKNOWN:.0%} or more", _SETTING)
    codes[is_unknown] = 0
    return codes, dict(zip(unknown_numbers.tolist(), counts.tolist(), strict=True))


def _on_grid(codes: np.ndarray, volume: Volume, scan: Volume, space: str | None) -> np.ndarray:
    shape = scan.data.shape
    if codes.shape == shape and np.allclose(volume.affine, scan.affine, atol=SAME_AFFINE_MM):
        return codes
    if space is not None:
        received = f"a label map in the space {space}, on another grid than the scan's"
        remedy = "Transform it to the scan's space, and remove `space` from its name."
        raise DataError(received, "a label map in the scan's own space", remedy)
    share_in_view = share_held(codes > 0, volume.affine, scan.affine, shape)
    if share_in_view < LEAST_INSIDE:
        received = f"a label map with {share_in_view:.0%} of its labelled voxels in the scan's field of view"
        raise DataError(received, f"{LEAST_INSIDE:.0%} or more", "Check the affines of map and scan.")
    scan_to_map = np.linalg.inv(volume.affine) @ scan.affine
    return ndimage.affine_transform(codes, scan_to_map, output_shape=shape, order=0, mode="grid-constant")


def _check_order(tissues: np.ndarray, image: np.ndarray, sequence: str, table: TableName, is_table_named: bool) -> None:
    """Raise DataError if the median intensities of the tissues are not in the order of the sequence.

    Then the map uses another table (1 GM, 2 WM, 3 CSF is as common as 1 CSF, 2 GM, 3 WM) or belongs to another scan.
    ``is_table_named``: the map's name or the setting gives the table.
    """
    for brighter, darker in _orders(sequence, is_table_named):
        bright = image[tissues == TISSUES.index(brighter) + 1]
        dark = image[tissues == TISSUES.index(darker) + 1]
        is_small = min(bright.size, dark.size) < LEAST_VOXELS
        if is_table_named and is_small:
            continue
        if is_small or np.median(bright) <= np.median(dark):
            received = f"a label map that, read with the table {table}, shows {brighter} no brighter than {darker}"
            remedy = f"{_SETTING} Check that the map belongs to this scan."
            raise DataError(received, f"the brightness order of tissues in {sequence}", remedy)


def _orders(sequence: str, is_table_named: bool) -> list[tuple[str, str]]:
    """Pairs of tissues, the brighter first, that a scan must show if its map was read with the right table.

    Outside T1w, grey and white matter are almost equal in some adults. So there this pair is only checked for a guessed
    table, and a named table is not refused because of it.
    """
    grey_white, fluid = BRIGHTER.get(sequence, (None, None))
    if not is_table_named and (grey_white is None or fluid is None):
        received = "a label map with the numbers 1 to 3 and no known table in its name"
        expected = f"a table in its name, because the brightness of tissues in {sequence} does not reveal it"
        raise DataError(received, expected, _SETTING)
    orders = []
    if fluid is not None:
        orders.append(("CSF", "WM") if fluid[0] == "CSF" else ("WM", "CSF"))
    if not is_table_named or sequence == "T1w":
        orders += [pair for pair in (grey_white, fluid) if pair is not None]
    return orders
