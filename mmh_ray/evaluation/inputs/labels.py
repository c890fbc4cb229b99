"""Label maps that others drew, read onto a scan's grid as plain tissues: fluid, grey matter, white matter."""

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
"""By sequence, of white and grey and of grey and fluid, first the one that an adult's scan must show brighter.

Where fluid lies in a PDw depends on its echo and repetition times, so nothing is asked of it there.
"""

LEAST_VOXELS = 50
"""Voxels of a tissue below which its figures say little."""
LEAST_INSIDE = 0.5
"""Part of the labelled tissue that must lie in the scan's field of view, and in its brain mask; else it is of another
scan."""
NAMED = 5
"""Label numbers named in a note."""
MOST_UNKNOWN = 0.25
"""Part of the labelled voxels whose numbers a table may not know; beyond, it is the wrong table."""

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
    """The tissues that others drew in a scan.

    Attributes
    ----------
    tissues:
        ``(I, J, K)`` uint8 on the scan's grid, inside its brain mask: 1 + the index in ``TISSUES``, 0 for all else.
    table:
        Name of the table that told them.
    inside:
        Part of the labelled grey and white matter that lies inside the brain mask, 0 to 1.
    unknown:
        Voxels by number that the table does not know.
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
        """Tissues of fewer than :data:`LEAST_VOXELS` voxels, of which there are no figures."""
        lacking = [tissue for tissue in TISSUES if np.count_nonzero(self.of(tissue)) < LEAST_VOXELS]
        return tuple(lacking)

    def remarks(self) -> list[str]:
        """What to know of the map, in words that maps of one kind share."""
        remarks = []
        if self.unknown:
            numbers = ", ".join(str(number) for number in sorted(self.unknown)[:NAMED])
            more = f" and {len(self.unknown) - NAMED} more" if len(self.unknown) > NAMED else ""
            remarks.append(f"labels that the table {self.table} does not know count as none: {numbers}{more}")
        if self.lacking:
            tissues = ", ".join(self.lacking)
            remarks.append(f"fewer than {LEAST_VOXELS} labelled voxels of {tissues}: no figures of it")
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
    """Read a label map and lay it on a scan: the nearest label through the affines, where its grid is another one.

    Parameters
    ----------
    scan, mask:
        The scan, best after a bias field correction, and ``(I, J, K)`` bool its brain.
    table:
        ``auto`` goes by the map's ``names``, then takes a map of no other numbers than 1, 2 and 3 for ``tissues``.
    names:
        Values of the map's `desc` and the like.
    space:
        Template's space that the map's name gives and the scan's does not: its grid must then be the scan's.

    Raises
    ------
    DataError
        If it cannot be read, holds fractions, does not lie on the scan or in its brain, if nobody can tell its table,
        or the tissues' median intensities are not in the order of the sequence by that table.
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
        received = f"a label map of which {inside:.0%} of grey and white matter lie in the scan's brain mask"
        raise DataError(received, f"{LEAST_INSIDE:.0%} or more", "Check that it is of this scan, and its affine.")
    return LabelMap(tissues * mask, table_name, inside, unknown)


def _whole_numbers(data: np.ndarray) -> np.ndarray:
    """int32 labels."""
    rounded = np.rint(data)
    if float(np.abs(data - rounded).max()) > _LEAST_FRACTION:
        raise DataError("a label map that holds fractions", "whole numbers", "Name maps of probabilities *_probseg.")
    return rounded.astype(np.int32)


def _table_by_name(names: Sequence[str]) -> TableName | None:
    """The table that the map's name gives."""
    for name in names:
        if name.lower() in _BY_NAME:
            return _BY_NAME[name.lower()]
    return None


def _table_by_numbers(numbers: np.ndarray) -> TableName:
    """``tissues`` for a map of 1, 2 and 3, all of them and nothing else."""
    if set(np.unique(numbers)) - {0} == {1, 2, 3}:
        return "tissues"
    received = f"a label map of numbers from {numbers.min()} to {numbers.max()} whose name says no table"
    expected = f"1, 2 and 3, or desc- one of {', '.join(_BY_NAME)}"
    raise DataError(received, expected, _SETTING)


def _tissue_codes(numbers: np.ndarray, name: TableName) -> tuple[np.ndarray, dict[int, int]]:
    """uint8 tissues, and how many voxels have each number that the table does not know."""
    by_number = label_table(name).codes()
    is_listed = (numbers >= 0) & (numbers < by_number.size)
    codes = by_number[np.where(is_listed, numbers, 0)]
    codes[~is_listed] = UNKNOWN
    is_unknown = codes == UNKNOWN
    unknown_numbers, counts = np.unique(numbers[is_unknown], return_counts=True)
    labelled = int(np.count_nonzero(numbers))
    unknown_share = float(counts.sum()) / max(labelled, 1)
    if unknown_share > MOST_UNKNOWN:
        received = f"a label map of which the table {name} knows {1 - unknown_share:.0%}"
        raise DataError(received, f"{1 - MOST_UNKNOWN:.0%} or more", _SETTING)
    codes[is_unknown] = 0
    return codes, dict(zip(unknown_numbers.tolist(), counts.tolist(), strict=True))


def _on_grid(codes: np.ndarray, volume: Volume, scan: Volume, space: str | None) -> np.ndarray:
    shape = scan.data.shape
    if codes.shape == shape and np.allclose(volume.affine, scan.affine, atol=SAME_AFFINE_MM):
        return codes
    if space is not None:
        received = f"a label map in the space {space}, on another grid than the scan's"
        raise DataError(received, "a label map in the scan's own space", "Bring it there, and leave `space` out.")
    share_in_view = share_held(codes > 0, volume.affine, scan.affine, shape)
    if share_in_view < LEAST_INSIDE:
        received = f"a label map of which {share_in_view:.0%} lies in the scan's field of view"
        raise DataError(received, f"{LEAST_INSIDE:.0%} or more", "Check the affines of map and scan.")
    scan_to_map = np.linalg.inv(volume.affine) @ scan.affine
    return ndimage.affine_transform(codes, scan_to_map, output_shape=shape, order=0, mode="grid-constant")


def _check_order(tissues: np.ndarray, image: np.ndarray, sequence: str, table: TableName, is_table_named: bool) -> None:
    """Raise DataError where the median intensities of the tissues are not in the order of the sequence.

    Then the map was numbered by another table (1 GM, 2 WM, 3 CSF is as usual as 1 CSF, 2 GM, 3 WM), or is of another
    scan. ``is_table_named``: the map's name or the setting gives the table.
    """
    for brighter, darker in _orders(sequence, is_table_named):
        bright = image[tissues == TISSUES.index(brighter) + 1]
        dark = image[tissues == TISSUES.index(darker) + 1]
        is_small = min(bright.size, dark.size) < LEAST_VOXELS
        if is_table_named and is_small:
            continue
        if is_small or np.median(bright) <= np.median(dark):
            received = f"a label map that, read by the table {table}, shows {brighter} no brighter than {darker}"
            remedy = f"{_SETTING} Check that the map is of this scan."
            raise DataError(received, f"the tissues in the order of a {sequence}", remedy)


def _orders(sequence: str, is_table_named: bool) -> list[tuple[str, str]]:
    """Pairs of tissues, the brighter first, that a scan must show if its map was read by the right table.

    Grey and white are all but equal in some adults' scans of other sequences than T1w: there they tell a table that
    nobody gave, and refute none.
    """
    grey_white, fluid = BRIGHTER.get(sequence, (None, None))
    if not is_table_named and (grey_white is None or fluid is None):
        received = "a label map of the numbers 1 to 3 whose name says no table"
        raise DataError(received, f"a name, as the order of tissues in {sequence} tells none", _SETTING)
    orders = []
    if fluid is not None:
        orders.append(("CSF", "WM") if fluid[0] == "CSF" else ("WM", "CSF"))
    if not is_table_named or sequence == "T1w":
        orders += [pair for pair in (grey_white, fluid) if pair is not None]
    return orders
