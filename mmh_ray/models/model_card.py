"""Writes the model card of a global bundle: intended use, training data and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(facts: Mapping[str, Any]) -> str:
    """Text of MODEL_CARD.md, from the facts of a global bundle."""
    training = facts["training"]
    grid = facts["config"]["grid"]
    sequences = ", ".join(facts["sequences"])
    edge = f"{grid['spacing_mm']:g} mm"
    shape = " x ".join(str(size) for size in grid["shape"])
    return f"""# Global harmonizer of brain MRI ({sequences})

## Intended use
Takes the scanner's style out of brain scans of these sequences: {sequences}. Every scan is brought to one unified style
per sequence, so that scans of different sites can be analysed together in research. It is not a medical device and
must not be used to diagnose or to treat.

## Training data
Hash of the prepared data: `{facts["data_hash"]}`. Volumes used for training:

{_counts_table(training.get("counts") or {}, facts["sequences"])}
## Training
- optimiser steps: {training.get("steps", "not recorded")}
- working grid: {edge} isotropic, {shape} voxels, canonical RAS axes
- code: mmh-ray {facts["code_version"]}

## Validation
{_validation_list(training.get("validation") or {})}
## Limits
- Other sequences than {sequences} are refused.
- The network works at {edge}; what is finer comes from the scan itself (detail projection), unless switched off.
- Scanners, ages and diseases that the training data do not show may be harmonized less well; a lesion may change in
  contrast.
- Scans are expected to show the whole brain; a wrong brain mask gives a wrong intensity scale.
- Check a sample of results by eye before an analysis.
"""


def _counts_table(counts: Mapping[str, Mapping[str, int]], sequences: list[str]) -> str:
    """Number of volumes by site (rows) and sequence (columns)."""
    if not counts:
        return "Not recorded.\n"
    head = ["site", *sequences]
    rows = [head, ["---"] * len(head)]
    for site, volumes in sorted(counts.items()):
        numbers = [str(volumes.get(sequence, 0)) for sequence in sequences]
        rows.append([str(site), *numbers])
    lines = []
    for row in rows:
        cells = " | ".join(row)
        lines.append(f"| {cells} |\n")
    return "".join(lines)


def _validation_list(losses: Mapping[str, float]) -> str:
    if not losses:
        return "No validation was recorded.\n"
    return "".join(f"- {name}: {value:.5g}\n" for name, value in losses.items())
