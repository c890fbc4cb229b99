"""Maps the numbers of each labelling to tissues: fluid, grey matter, white matter.

Grey matter is the cortex of cerebrum and cerebellum. Deep grey nuclei (thalamus, pallidum, putamen, caudate and others)
are left out: they contain iron and fibres, so their T1 and T2 lie between those of cortex and white matter.
Hippocampus and amygdala are left out because their labels include adjacent white matter and fluid. The brain stem does
not count as white matter. So only tissues that an image must show as different are compared. The tables `tissues` and
`bids` do not separate these structures, so their results cannot be compared with those of the other tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from mmh_ray.evaluation.metrics.segmentation import TISSUES

TableName = Literal["freesurfer", "dlmuse", "tissues", "bids"]

UNKNOWN = 255
"""Code of a number that is not in the table."""
_CODES = {tissue: code for code, tissue in enumerate(TISSUES, start=1)}


class LabelTable(NamedTuple):
    """The numbers of each tissue.

    ``others`` are known but not used: deep grey, brain stem, vessels, and everything outside the brain.
    """

    csf: frozenset[int]
    gm: frozenset[int]
    wm: frozenset[int]
    others: frozenset[int]

    def codes(self) -> np.ndarray:
        """uint8 code, indexed by number: 1 CSF, 2 GM, 3 WM (as in :data:`TISSUES`), 0 others, or :data:`UNKNOWN`."""
        largest = max(frozenset.union(*self))
        codes = np.full(largest + 1, UNKNOWN, np.uint8)
        codes[0] = 0
        codes[list(self.csf)] = _CODES["CSF"]
        codes[list(self.gm)] = _CODES["GM"]
        codes[list(self.wm)] = _CODES["WM"]
        codes[list(self.others)] = 0
        return codes


def _numbers(*parts: int | Iterable[int]) -> frozenset[int]:
    numbers: set[int] = set()
    for part in parts:
        numbers |= {part} if isinstance(part, int) else set(part)
    return frozenset(numbers)


@cache
def label_table(name: TableName) -> LabelTable:
    """Return a table by its name.

    ``freesurfer``: `FreeSurferColorLUT.txt` (Fischl et al. 2002; Desikan et al. 2006), as FreeSurfer, FastSurfer and
    SynthSeg write it: aseg, the cortical parcels of aparc (1000-2999) and of aparc.a2009s (11100-12199), the white
    matter parcels of wmparc. ``dlmuse``: the ROIs of MUSE (Doshi et al. 2016) and DLMUSE, with the numbers of
    Neuromorphometrics, and 1 for fluid around the brain. ``tissues``: 1 CSF, 2 GM, 3 WM, as in FSL FAST, ANTs Atropos
    and IBSR. ``bids``: 1 GM, 2 WM, 3 CSF, as in the BIDS derivatives specification and fMRIPrep, 4-7 for lesions and
    non-brain tissue, 8 cortex, 9 deep grey, 10 brain stem, 11 cerebellum.
    """
    makers = {"freesurfer": _freesurfer, "dlmuse": _dlmuse, "tissues": _tissues, "bids": _bids}
    return makers[name]()


def _freesurfer() -> LabelTable:
    no_cortex = {1000, 2000, 1004, 2004, 11100, 12100, 11142, 12142}  # unknown, corpus callosum, medial wall
    parcels = _numbers(range(1001, 1100), range(2001, 2100), range(11101, 11200), range(12101, 12200))
    white_parcels = _numbers(range(3001, 3100), range(4001, 4100), 5001, 5002, range(13101, 13200), range(14101, 14200))
    corpus_callosum = _numbers(192, range(251, 256), 1004, 2004)
    fluid = _numbers(4, 43, 5, 44, 14, 15, 72, 24)
    deep_grey = _numbers(9, 48, 10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 28, 60, 91, 92)
    limbic = _numbers(17, 53, 18, 54)
    vessels_and_plexus = _numbers(30, 62, 31, 63, 85)
    lesions = _numbers(25, 57, range(77, 83), 99)
    no_brain = _numbers(1, 40, 6, 45, 165, 257, 258, 259, range(500, 600), 3000, 4000, 13100, 14100)
    brain_stem = _numbers(16)
    mixed = deep_grey | limbic | brain_stem
    foreign = vessels_and_plexus | lesions | no_brain
    return LabelTable(
        csf=fluid,
        gm=_numbers(3, 42, 8, 47, parcels) - no_cortex,
        wm=_numbers(2, 41, 7, 46) | corpus_callosum | white_parcels,
        others=mixed | foreign | no_cortex - corpus_callosum,
    )


def _dlmuse() -> LabelTable:
    deep_grey = _numbers(23, 30, 36, 37, range(55, 63), 75, 76)
    limbic = _numbers(31, 32, 47, 48)
    lesions_and_vessels = _numbers(53, 54, 63, 64, 69)
    return LabelTable(
        csf=_numbers(1, 4, 11, 46, range(49, 53)),
        gm=_numbers(38, 39, 71, 72, 73, range(100, 208)),
        wm=_numbers(40, 41, 44, 45, range(81, 96)),
        others=deep_grey | limbic | lesions_and_vessels | _numbers(35, 42, 43),
    )


def _tissues() -> LabelTable:
    return LabelTable(_numbers(1), _numbers(2), _numbers(3), frozenset())


def _bids() -> LabelTable:
    return LabelTable(csf=_numbers(3), gm=_numbers(1, 8), wm=_numbers(2), others=_numbers(range(4, 8), 9, 10, 11))
