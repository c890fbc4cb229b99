"""Signal equations of the sequences, and random protocols like those of real cohorts.

Each equation computes the signal of every tissue, ``(T,)`` in units of the fully relaxed signal of fluid, from proton
density, T1 and T2 in ms and the scanner's settings. A voxel's signal is the mean of its tissues' signals, weighted by
their shares.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Protocol

import numpy as np

from mmh_ray.simulation.tissues import BRAIN, FLUID, GREY, TISSUES, WHITE

SEQUENCES = ("T1w", "T2w", "FLAIR", "PDw")
"""Sequences that can be simulated."""


@dataclass(frozen=True)
class Matter:
    """The physical properties of one person's tissues.

    Attributes
    ----------
    density:
        ``(T,)`` proton density, fluid about 1.
    t1_ms, t2_ms:
        ``(T,)`` relaxation times at the scanner's field.
    """

    density: np.ndarray
    t1_ms: np.ndarray
    t2_ms: np.ndarray

    @classmethod
    def typical(cls, field_t: float) -> Matter:
        """The tissues of an average adult at a field in tesla."""
        columns = np.array([astuple(tissue)[1:] for tissue in TISSUES]).T
        density, t1_at_3t, t1_growth, t2_at_3t, t2_growth = columns
        relative_field = field_t / 3.0
        t1_factor = relative_field**t1_growth
        t2_factor = relative_field**t2_growth
        return cls(density, t1_at_3t * t1_factor, t2_at_3t * t2_factor)

    def varied(self, rng: np.random.Generator, spread: float = 0.04) -> Matter:
        """The tissues of another person: every value times a log-normal factor.

        Tissues outside the brain, pathology and contrast agent vary more than healthy brain.
        """
        width = np.full(len(TISSUES), 4.0)
        width[:8] = 1.0  # healthy brain
        deviation = rng.normal(0, spread, (3, len(TISSUES)))
        density_factor, t1_factor, t2_factor = np.exp(deviation * width)
        return Matter(self.density * density_factor, self.t1_ms * t1_factor, self.t2_ms * t2_factor)


class Acquisition(Protocol):
    """A sequence with its settings."""

    def signal(self, matter: Matter, transmit: float) -> np.ndarray:
        """``(T,)`` signal if the transmit field is ``transmit`` times the nominal one."""


def _t2_star_decay(matter: Matter, te_ms: float) -> np.ndarray:
    """``(T,)`` share of the signal that remains at the echo time of a gradient echo."""
    exponent = -1.5 * te_ms / matter.t2_ms
    return np.exp(exponent)


@dataclass(frozen=True)
class InversionGradientEcho:
    """MPRAGE and similar sequences (IR-SPGR, BRAVO, 3-D TFE): inversion, wait, train of spoiled gradient echoes, rest.

    Mugler & Brookeman, MRM 1990; the steady state over repeated trains follows Wang et al., PLoS ONE 2014.

    Attributes
    ----------
    tr_ms:
        Time from one inversion to the next.
    ti_ms:
        Time from the inversion to the echo at the centre of k-space.
    echo_ms, echoes:
        Spacing of the echoes and their number.
    flip:
        Degrees.
    te_ms:
        Echo time; T2* is taken as two thirds of T2.
    efficiency:
        Share of the magnetisation that is inverted.
    """

    tr_ms: float
    ti_ms: float
    echo_ms: float
    echoes: int
    flip: float
    te_ms: float = 3.0
    efficiency: float = 0.96

    def signal(self, matter: Matter, transmit: float) -> np.ndarray:
        """See :class:`Acquisition`. An adiabatic inversion does not depend on the transmit field."""
        angle = np.deg2rad(self.flip * transmit)
        train_ms = self.echoes * self.echo_ms
        wait_ms = max(self.ti_ms - train_ms / 2, 1.0)
        rest_ms = max(self.tr_ms - wait_ms - train_ms, 1.0)
        waited = np.exp(-wait_ms / matter.t1_ms)
        rested = np.exp(-rest_ms / matter.t1_ms)
        between = np.exp(-self.echo_ms / matter.t1_ms)
        decay = between * np.cos(angle)  # of the deviation from the driven state, per echo
        driven = (1 - between) / (1 - decay)  # the limit of an infinitely long train
        train = decay**self.echoes
        # The magnetisation before the inversion is a fixed point of the cycle: invert, wait, train of echoes, rest.
        # A cycle maps it to constant + slope * magnetisation.
        driven_part = driven * (1 - train)
        after_train = driven_part + train * (1 - waited)
        constant = 1 - rested + rested * after_train
        slope = -rested * train * waited * self.efficiency
        before_inversion = constant / (1 - slope)
        turned = 1 + self.efficiency * before_inversion
        first_echo = 1 - turned * waited
        half_train = decay ** (self.echoes / 2)
        centre_echo = driven + (first_echo - driven) * half_train
        excited = matter.density * np.sin(angle)
        decay_to_echo = _t2_star_decay(matter, self.te_ms)
        return excited * np.abs(centre_echo) * decay_to_echo


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """FLASH, SPGR, T1-FFE: the Ernst formula (Ernst & Anderson, 1966; Haase et al., JMR 1986).

    Times are in ms, the flip angle is in degrees.
    """

    tr_ms: float
    flip: float
    te_ms: float = 4.0

    def signal(self, matter: Matter, transmit: float) -> np.ndarray:
        """See :class:`Acquisition`."""
        angle = np.deg2rad(self.flip * transmit)
        e1 = np.exp(-self.tr_ms / matter.t1_ms)
        excited = np.sin(angle) * (1 - e1)
        driven = 1 - e1 * np.cos(angle)
        steady_state = excited / driven
        t2_star_decay = _t2_star_decay(matter, self.te_ms)
        return matter.density * steady_state * t2_star_decay


@dataclass(frozen=True)
class SpinEcho:
    """Spin echo, or fast spin echo at its effective echo time: T1w, PDw and T2w (Hendrick, in Stark & Bradley, 1999).

    ``PD (1 - 2 exp(-(TR - TE/2) / T1) + exp(-TR / T1)) exp(-TE / T2)``; a refocusing pulse that misses its nominal
    angle reduces the signal.
    """

    tr_ms: float
    te_ms: float

    def signal(self, matter: Matter, transmit: float) -> np.ndarray:
        """See :class:`Acquisition`."""
        since_refocusing_ms = self.tr_ms - self.te_ms / 2
        refocused = 2 * np.exp(-since_refocusing_ms / matter.t1_ms)
        relaxed = np.exp(-self.tr_ms / matter.t1_ms)
        recovered = np.maximum(1 - refocused + relaxed, 0)
        excitation = np.sin(np.deg2rad(90 * transmit))
        refocusing = excitation**2
        turned = excitation * refocusing
        t2_decay = np.exp(-self.te_ms / matter.t2_ms)
        return matter.density * recovered * turned * t2_decay


@dataclass(frozen=True)
class InversionSpinEcho:
    """FLAIR: an inversion that nulls fluid, then a (fast) spin echo (Hajnal et al., JCAT 1992; Rydberg et al., MRM
    1995)."""

    tr_ms: float
    ti_ms: float
    te_ms: float
    efficiency: float = 0.95

    def signal(self, matter: Matter, transmit: float) -> np.ndarray:
        """See :class:`Acquisition`."""
        waited = np.exp(-self.ti_ms / matter.t1_ms)
        inverted = (1 + self.efficiency) * waited
        relaxed = np.exp(-self.tr_ms / matter.t1_ms)
        not_recovered = self.efficiency * relaxed
        longitudinal = np.abs(1 - inverted + not_recovered)
        angle = np.deg2rad(90 * transmit)
        excited = np.sin(angle) ** 3
        t2_decay = np.exp(-self.te_ms / matter.t2_ms)
        return matter.density * longitudinal * excited * t2_decay


@dataclass(frozen=True)
class FreeContrast:
    """A random level for each tissue, without physics, for contrasts outside these equations (Billot et al., MedIA
    2023)."""

    levels: tuple[float, ...]

    def signal(self, matter: Matter, transmit: float) -> np.ndarray:
        """See :class:`Acquisition`."""
        return np.array(self.levels)


@dataclass(frozen=True)
class Scan:
    """A protocol on a scanner."""

    sequence: str
    field_t: float
    acquisition: Acquisition

    def signal(self, matter: Matter, transmit: float = 1.0) -> np.ndarray:
        """``(T,)`` signal of every tissue if the transmit field is ``transmit`` times the nominal one."""
        return self.acquisition.signal(matter, transmit)


CANONICAL = {
    "T1w": Scan("T1w", 3.0, InversionGradientEcho(2300, 850, 7.0, 176, 9)),
    "T2w": Scan("T2w", 3.0, SpinEcho(5000, 95)),
    "FLAIR": Scan("FLAIR", 3.0, InversionSpinEcho(9000, 2450, 110)),
    "PDw": Scan("PDw", 3.0, SpinEcho(3000, 15)),
}
"""The protocols of the unified domain: for each sequence a usual protocol at 3 T with good contrast, not an average of
sites."""

_SCALE = {"T1w": (WHITE, 0.9), "T2w": (FLUID, 0.95), "FLAIR": (GREY, 0.75), "PDw": (GREY, 0.85)}
"""A tissue of each sequence, and its unit intensity in the unified domain."""


def canonical_levels(sequence: str) -> np.ndarray:
    """``(T,)`` unit intensity of every tissue in the unified domain.

    In T1w, grey and white matter differ by at least .33 of white matter, and fluid is dark; a test checks this.
    """
    signal = CANONICAL[sequence].signal(Matter.typical(3.0))
    tissue, level = _SCALE[sequence]
    return signal / signal[tissue] * level


_LIMITS = {
    # Bounds of (WM - GM) / max(WM, GM) and of fluid / white matter in a usable scan of the sequence.
    "T1w": ((0.10, 0.65), (0.0, 0.75)),
    "T2w": ((-0.6, -0.01), (1.5, 12.0)),
    "FLAIR": ((-0.5, -0.04), (0.0, 0.75)),
    "PDw": ((-0.4, -0.03), (0.5, 1.9)),
}


_FIELDS_T = (0.064, 0.3, 0.5, 1.0, 1.5, 3.0, 7.0)
_SHARES_OF_FIELDS = (0.02, 0.02, 0.03, 0.08, 0.35, 0.42, 0.08)


def random_scan(sequence: str, rng: np.random.Generator) -> Scan:
    """Draw a training protocol: over wide ranges, but such that it gives a usable scan of the sequence."""
    while True:
        field_t = float(rng.choice(_FIELDS_T, p=_SHARES_OF_FIELDS))
        scan = Scan(sequence, field_t, _DRAW[sequence](rng, field_t))
        if _is_usable(scan):
            return scan


def _is_usable(scan: Scan) -> bool:
    """Whether the contrasts of an average adult are within the bounds of a usable scan."""
    signal = scan.signal(Matter.typical(scan.field_t))
    white = signal[WHITE]
    grey = signal[GREY]
    contrast = (white - grey) / max(white, grey)
    fluid = signal[FLUID] / white
    (least_contrast, most_contrast), (least_fluid, most_fluid) = _LIMITS[scan.sequence]
    return bool(least_contrast <= contrast <= most_contrast and least_fluid <= fluid <= most_fluid)


def any_contrast(rng: np.random.Generator) -> Scan:
    """Draw a level for every tissue independent of any sequence, for a network that must work with any contrast."""
    return Scan("any", 3.0, FreeContrast(tuple(rng.uniform(0.02, 1.0, len(TISSUES)))))


def _draw_t1w(rng: np.random.Generator, field_t: float) -> Acquisition:
    kind = rng.random()
    if kind < 0.68:
        echoes = int(rng.integers(80, 260))
        echo_ms = rng.uniform(5.0, 12.0)
        train_ms = echoes * echo_ms
        growth = (field_t / 3.0) ** 0.38  # inversion times follow the tissues' T1
        ti_ms = train_ms / 2 + rng.uniform(50, 750) * growth
        tr_ms = ti_ms + train_ms / 2 + rng.uniform(100, 1600) * growth
        flip = rng.uniform(6, 16)
        return InversionGradientEcho(tr_ms, ti_ms, echo_ms, echoes, flip, te_ms=rng.uniform(1.5, 5))
    if kind < 0.78:
        return SpoiledGradientEcho(tr_ms=rng.uniform(5, 45), flip=rng.uniform(8, 45), te_ms=rng.uniform(1.5, 10))
    if kind < 0.83:
        return SpinEcho(tr_ms=rng.uniform(350, 900), te_ms=rng.uniform(7, 20))
    return _free(rng, "T1w", fluid=(0.02, 0.38), grey=(0.4, 0.85))


def _draw_t2w(rng: np.random.Generator, field_t: float) -> Acquisition:
    spin_echo = _sometimes_spin_echo(rng, tr_ms=(2000, 9000), te_ms=(55, 150))
    return spin_echo or _free(rng, "T2w", fluid=(2.0, 4.5), grey=(1.05, 1.9))


def _draw_flair(rng: np.random.Generator, field_t: float) -> Acquisition:
    if rng.random() < 0.8:
        tr_ms = rng.uniform(4800, 11000)
        fluid_t1_ms = 4300
        not_recovered = 0.95 * np.exp(-tr_ms / fluid_t1_ms)
        null_ms = fluid_t1_ms * (np.log(1.95) - np.log1p(not_recovered))  # when the signal of fluid crosses zero
        ti_ms = null_ms * rng.uniform(0.88, 1.1)
        return InversionSpinEcho(tr_ms, ti_ms, te_ms=rng.uniform(70, 160))
    return _free(rng, "FLAIR", fluid=(0.02, 0.6), grey=(1.06, 1.5))


def _draw_pdw(rng: np.random.Generator, field_t: float) -> Acquisition:
    spin_echo = _sometimes_spin_echo(rng, tr_ms=(1800, 7000), te_ms=(8, 40))
    return spin_echo or _free(rng, "PDw", fluid=(0.6, 0.95), grey=(1.05, 1.5))


def _sometimes_spin_echo(
    rng: np.random.Generator, tr_ms: tuple[float, float], te_ms: tuple[float, float]
) -> SpinEcho | None:
    """A spin echo with times in these ranges, with a probability of 85 %; else None."""
    if rng.random() < 0.85:
        return SpinEcho(tr_ms=rng.uniform(*tr_ms), te_ms=rng.uniform(*te_ms))
    return None


_DRAW = {"T1w": _draw_t1w, "T2w": _draw_t2w, "FLAIR": _draw_flair, "PDw": _draw_pdw}


def _free(
    rng: np.random.Generator, sequence: str, fluid: tuple[float, float], grey: tuple[float, float]
) -> FreeContrast:
    """Draw fluid and grey matter relative to white matter, and all other levels accordingly.

    Other brain tissue keeps its rank between these three, slightly varied; tissue outside the brain is free. Pathology
    keeps its rank, too: if a lesion were dark in the unified domain but bright in the scan, the network would learn to
    invert it.
    """
    canonical = canonical_levels(sequence)
    drawn = {FLUID: rng.uniform(*fluid), GREY: rng.uniform(*grey), WHITE: 1.0}
    dark_to_bright = sorted(drawn, key=lambda tissue: canonical[tissue])
    knots = np.array([canonical[tissue] for tissue in dark_to_bright])
    heights = np.array([drawn[tissue] for tissue in dark_to_bright])
    # A curve from canonical to drawn level: through the three tissues, towards 0 below them, rising above them.
    lowest, middle, highest = heights
    far = 3.0
    last_slope = (highest - middle) / (knots[2] - knots[1])
    share_of_slope = rng.uniform(0.3, 1.0)
    far_height = highest + max(last_slope, 0.2) * far * share_of_slope
    all_knots = [0.0, *knots, knots[2] + far]
    all_heights = [0.3 * lowest, *heights, far_height]
    levels = np.interp(canonical, all_knots, all_heights)
    levels[3:8] *= np.exp(rng.normal(0, 0.05, 5))
    outside = [channel for channel in range(len(TISSUES)) if channel not in BRAIN]
    levels[outside] = rng.uniform(0.02, 1.8, len(outside))
    return FreeContrast(tuple(levels))
