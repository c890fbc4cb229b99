"""Refuses scans that the model is not made for; it needs an adult's head, the stated sequence, a right orientation."""

from __future__ import annotations

from collections.abc import Mapping

from mmh_ray.config import GridConfig, PrepareConfig, QualityConfig
from mmh_ray.errors import DataError, MaskError, RefusedError
from mmh_ray.imaging.preprocess import Prepared, prepare_volume
from mmh_ray.imaging.volume import Volume
from mmh_ray.quality.describe import describe_scan

FLUID_IS_BRIGHT = {"T1w": False, "T2w": True, "FLAIR": False}
"""Whether fluid is the brightest tissue (else the darkest); the contrasts of other sequences are not checked."""
WHITE_IS_BRIGHT = {"T1w": True, "T2w": False}
"""Whether an adult's white matter is brighter than grey matter."""


def check_scan(sequence: str, figures: Mapping[str, float], config: QualityConfig, mask_given: bool = False) -> None:
    """Refuse a scan that the model is not made for.

    That is a scan with integer overflow, one that does not show an adult's head, one with a wrong orientation in its
    header, or one of another sequence. Without a registration, only integer overflow is checked.

    Parameters
    ----------
    mask_given:
        Whether the user gave a brain mask; the error then does not suggest one.

    Raises
    ------
    RefusedError
        If the integers overflowed, the template does not fit, or the order of the tissues' intensities is wrong for the
        sequence.
    """
    wrapped_steps = figures.get("wrapped", 0)
    if wrapped_steps > config.most_wrapped:
        raise RefusedError(
            f"integer overflow: {wrapped_steps:.0f} steps from the brightest to the darkest between neighbours",
            f"{config.most_wrapped:g} at most",
            "Convert the scan again to a type that holds its largest value, such as float32.",
        )
    if "registration" not in figures:
        return
    if figures["registration"] < config.least_fit:
        remedy = "Check that it is an MRI of an adult's head and that its orientation is right"
        other_causes = "Large tumours and weak contrast also fit badly, and would give a wrong result."
        mask_helps = "" if mask_given else "; if so, and the skull was not removed, give a brain mask"
        raise RefusedError(
            f"a head that the ICBM-152 template fits with a quality of {figures['registration']:.2f}",
            f"{config.least_fit:g} or more",
            f"{remedy}{mask_helps}. {other_causes}",
        )
    if sequence in FLUID_IS_BRIGHT:
        _check_tissues(sequence, figures["fluid_contrast"], figures["white_contrast"], config.least_contrast)


def check_prepared(
    sequence: str,
    figures: Mapping[str, float],
    config: QualityConfig,
    volume: Volume,
    prepared: Prepared,
    grid: GridConfig,
    settings: PrepareConfig,
) -> None:
    """Apply :func:`check_scan` to a prepared scan.

    A scan that is refused with the user's mask is tried again without it, to find out which of the two is wrong.

    Raises
    ------
    RefusedError
        As :func:`check_scan`.
    MaskError
        If the scan passes with an estimated mask: the user's mask belongs to another scan or is misplaced.
    """
    try:
        check_scan(sequence, figures, config, prepared.given)
    except RefusedError as refusal:
        if prepared.given and _passes_without_mask(sequence, config, volume, grid, settings):
            raise MaskError(
                f"a brain mask in which the scan shows {refusal.received}; with an estimated mask it passes",
                "a mask of this scan's brain",
                "Check that the mask belongs to this scan and its affine is right, or leave it out.",
            ) from refusal
        raise


def _passes_without_mask(
    sequence: str, config: QualityConfig, volume: Volume, grid: GridConfig, settings: PrepareConfig
) -> bool:
    try:
        without_mask = prepare_volume(volume, None, grid, settings)
        figures = describe_scan(volume, without_mask.brain, without_mask.registration, without_mask)
        check_scan(sequence, figures, config)
    except DataError:
        return False
    return True


def _check_tissues(sequence: str, fluid: float, white: float, least: float) -> None:
    """Raise RefusedError unless fluid and white matter differ from grey matter as expected.

    ``fluid`` and ``white`` are their contrasts to grey matter, ``least`` the least contrast, in standard deviations.
    """
    checks = [("fluid", fluid, FLUID_IS_BRIGHT[sequence], least)]
    if sequence in WHITE_IS_BRIGHT:
        white_is_bright = WHITE_IS_BRIGHT[sequence]
        # In some T2w scans, grey and white matter are almost equal.
        checks.append(("white matter", white, white_is_bright, least if white_is_bright else 0.0))
    is_right = True
    expected = []
    for tissue, contrast, is_brighter, least_difference in checks:
        difference = contrast if is_brighter else -contrast
        is_right = is_right and difference >= least_difference
        expected.append(f"{tissue} {'brighter' if is_brighter else 'darker'} than grey by {least_difference:g}")
    if not is_right:
        raise RefusedError(
            f"fluid {fluid:+.2f} and white matter {white:+.2f} standard deviations from grey",
            f"a {sequence}: {', '.join(expected)} or more",
            "Check the sequence in the file's name.",
        )
