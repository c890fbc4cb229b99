"""Fields of a sidecar that describe how a scan was harmonized."""

from __future__ import annotations

from typing import Any

from mmh_ray.bids.derivatives import generated_by
from mmh_ray.config import to_dict
from mmh_ray.harmonization.harmonizer import HarmonizedScan, Harmonizer
from mmh_ray.imaging.template import SPACE
from mmh_ray.provenance import code_version
from mmh_ray.quality.histograms import histogram

_UNITS = {
    ("unit", False): "unit intensity of the unified domain (0 background, about 1 bright tissue)",
    ("source", False): "the scan's own: unit intensity of the unified domain * (High - Low) + Low",
    ("unit", True): "unit intensity of the target site (0 background, 1 bright tissue of its scans)",
    ("source", True): (
        "the scan's own range, in the target's contrast: unit intensity of the target site * (High - Low) + Low"
    ),
}
"""By ``harmonize.intensity``, and whether there is a target. The original units of the target's scans are not known."""


def account_of(scan: HarmonizedScan, harmonizer: Harmonizer, has_target: bool) -> dict[str, Any]:
    """Fields of the sidecar from a scan and its harmonizer; JSON-able."""
    prepared = scan.prepared
    settings = harmonizer.settings
    return {
        "SkullStripped": scan.stripped,
        "Units": _UNITS[settings.intensity, has_target],
        "Preparation": list(prepared.steps),
        "IntensityMapping": {
            "Low": prepared.scaling.low,
            "High": prepared.scaling.high,
            "Formula": "unit = (scan - Low) / (High - Low)",
        },
        "Registration": _registration(scan),
        "Settings": to_dict(settings) | {"prepare": to_dict(harmonizer.prepare)},
        "QC": scan.quality,
        "BrainHistogram": {
            "Before": histogram(scan.source.data[prepared.brain]),
            "After": histogram(scan.harmonized.data[prepared.brain]),
        },
        "GeneratedBy": [generated_by(code_version())],
    }


def _registration(scan: HarmonizedScan) -> dict[str, Any] | None:
    """The registration, which maps an image in template space back to the scan.

    `IntensityMapping` maps intensities back. Nothing else can be undone from the sidecar: N4's field and the model's
    changes are not recorded.
    """
    registration = scan.prepared.registration
    if registration is None:
        return None
    return {
        "Method": registration.method,
        "Quality": registration.quality,
        "TemplateSpace": SPACE,
        "TemplateToScan": registration.matrix.tolist(),
    }
