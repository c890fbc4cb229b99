"""The tissues of a head: their relaxation times and proton densities, and the atlas labels that belong to each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tissue:
    """One tissue.

    Attributes
    ----------
    name:
        Its name in errors and model cards.
    density:
        Proton density, fluid = 1.
    t1_ms:
        Longitudinal relaxation time at 3 T.
    t1_growth:
        Exponent of its growth with the field, ``T1(B) = t1_ms (B / 3)**t1_growth`` (Rooney et al., MRM 2007: .38 in
        brain).
    t2_ms:
        Transverse relaxation time at 3 T, as spin echoes see it.
    t2_growth:
        Exponent of its change with the field; negative: at 7 T, tissue rich in iron decays faster.
    """

    name: str
    density: float
    t1_ms: float
    t1_growth: float
    t2_ms: float
    t2_growth: float


TISSUES = (
    # Brain at 3 T: Wansapura et al., JMRI 1999; Stanisz et al., MRM 2005; Rooney et al., MRM 2007.
    # Proton density: Tofts 2003, ch. 4.
    Tissue("fluid", 1.00, 4300, 0.0, 1600, -0.1),
    Tissue("grey matter", 0.82, 1480, 0.38, 99, -0.25),
    Tissue("white matter", 0.70, 830, 0.38, 72, -0.25),
    Tissue("thalamus", 0.76, 1150, 0.38, 82, -0.3),
    Tissue("striatum", 0.80, 1330, 0.38, 84, -0.3),
    Tissue("pallidum", 0.74, 950, 0.38, 58, -0.4),
    Tissue("brain stem", 0.73, 970, 0.38, 78, -0.25),
    Tissue("choroid plexus", 0.90, 1900, 0.3, 200, -0.2),
    Tissue("dura and sinuses", 0.60, 1500, 0.25, 60, -0.3),
    Tissue("vessel", 0.70, 1650, 0.2, 90, -0.6),
    # Outside the brain: de Bazelaire et al., Radiology 2004; Gold et al., AJR 2004.
    Tissue("soft tissue", 0.80, 1300, 0.3, 42, -0.2),
    Tissue("fat", 0.95, 370, 0.25, 110, -0.2),
    Tissue("skin", 0.75, 900, 0.3, 45, -0.2),
    Tissue("bone", 0.08, 800, 0.2, 8, 0.0),
    Tissue("marrow", 0.75, 450, 0.25, 90, -0.2),
    Tissue("eye", 0.98, 3800, 0.0, 900, -0.1),
    Tissue("mucosa", 0.85, 1500, 0.3, 110, -0.2),
    # Disease: Stanisz et al. 2005 (oedema); Larsson et al., MRM 1988 (multiple sclerosis plaques).
    Tissue("lesion", 0.85, 1500, 0.35, 160, -0.2),
    Tissue("oddity", 0.80, 1300, 0.35, 110, -0.2),
    Tissue("enhancing", 0.82, 480, 0.2, 90, -0.2),
)
"""All simulated tissues; the position is the channel. `oddity` is drawn for each scan; `enhancing` took up contrast
agent."""

NAMES = tuple(tissue.name for tissue in TISSUES)
FLUID = NAMES.index("fluid")
GREY = NAMES.index("grey matter")
WHITE = NAMES.index("white matter")
SOFT = NAMES.index("soft tissue")
FAT = NAMES.index("fat")
LESION = NAMES.index("lesion")
ODDITY = NAMES.index("oddity")
ENHANCING = NAMES.index("enhancing")
BRAIN = (*range(8), LESION, ODDITY, ENHANCING)
"""Channels of the brain, including the fluid around and inside it."""

_FREESURFER = {
    "fluid": (4, 5, 14, 15, 24, 43, 44, 72),
    "grey matter": (3, 8, 17, 18, 26, 42, 47, 53, 54, 58, 136, 137, 163, 164),
    "white matter": (2, 7, 41, 46, 77, 78, 79, 85, 251, 252, 253, 254, 255),
    "thalamus": (9, 10, 48, 49),
    "striatum": (11, 12, 50, 51),
    "pallidum": (13, 52),
    "brain stem": (16, 28, 60),
    "choroid plexus": (31, 63),
    "dura and sinuses": (514,),
    "vessel": (30, 62, 502, 57, 25),
    "soft tissue": (507,),
    "skin": (511,),
    "bone": (515, 165),
    "marrow": (516,),
    "eye": (506, 508, 530),
    "mucosa": (509, 512),
}
"""FreeSurfer's numbers; 502 to 530 as in SynthSeg's training maps, outside the brain (Billot et al., MedIA 2023)."""

AIR = len(TISSUES)
"""Channel number, in look-up tables, of everything without a signal."""


def freesurfer_channels() -> np.ndarray:
    """Look-up table from FreeSurfer number to channel, ``(65536,)`` int64; unknown numbers are air."""
    table = np.full(65536, AIR, np.int64)
    table[1000:3000] = GREY
    table[3000:5000] = WHITE
    for name, numbers in _FREESURFER.items():
        table[list(numbers)] = NAMES.index(name)
    return table
