"""An evaluation in sentences: what a reader who is no statistician takes home."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmh_ray.evaluation.metrics.registry import MEASURES, OURS, RAW, SIMPLE, ordered, shown_name

PROBES = ("site_probe", "site_probe_cnn", "site_probe_pattern", "site_probe_style")
"""The probes trained anew; the one that tells most counts."""
JUDGED = ("truth_nrmse", *PROBES, "psnr", "w1", "gradient_correlation")
"""Measures by which the best simple method is chosen: mean rank over those that there are."""
AGAINST_SOURCE = ("gradient_correlation", "structural_dissimilarity", "hallucination")
"""Measures of change, in which whoever changes nothing cannot be beaten."""

Entries = Mapping[str, Mapping[str, Any]]


def sentences(evaluation: Mapping[str, Any], sequence: str) -> list[str]:
    """What can be said of ours for one sequence; without an archive `ours`, that there is none."""
    ours = evaluation.get(OURS, {}).get(sequence)
    if ours is None:
        return ["There is no archive named ours, so methods stand side by side and no differences are taken."]
    raw = evaluation[RAW].get(sequence, {})
    said = [_site(ours, raw), _kept(ours), _truth(ours, raw), _labels(ours, raw), _people(evaluation, sequence)]
    said += [_alternative(evaluation, sequence), _losses(evaluation, sequence), _beaten(evaluation, sequence)]
    return [text for text in said if text]


def best_simple(evaluation: Mapping[str, Any], sequence: str) -> str | None:
    """The simple method of the best mean rank over :data:`JUDGED`; None without any."""
    rows = {name: evaluation[name][sequence] for name in SIMPLE if sequence in evaluation.get(name, {})}
    if not rows:
        return None
    ranks = dict.fromkeys(rows, 0)
    for measure in JUDGED:
        worth = {name: _worth(measure, own[measure]) for name, own in rows.items() if measure in own}
        for name, value in worth.items():
            ranks[name] += sum(other > value for other in worth.values())
    return min(ranks, key=lambda name: ranks[name])


def _worth(measure: str, found: Mapping[str, Any]) -> float:
    """A value whose more is better; a probe below chance is worth no more than one at it."""
    kind = MEASURES[measure]
    value = max(found["value"], found["chance"]) if measure in PROBES else found["value"]
    return kind.sign * kind.judged(value)


def verdicts(evaluation: Mapping[str, Any], sequence: str, method: str) -> dict[str, str]:
    """``better``, ``worse`` or ``even`` of ours against a method by measure; ``even``: the interval holds 0."""
    found, differences = {}, evaluation["differences"].get(method, {}).get(sequence, {})
    for name, kind in MEASURES.items():
        difference, sign = differences.get(name), kind.sign
        if difference and sign and difference["low"] is not None and difference["high"] is not None:
            low, high = sorted((sign * difference["low"], sign * difference["high"]))
            found[name] = "better" if low > 0 else "worse" if high < 0 else "even"
    return found


def where_it_beats_ours(evaluation: Mapping[str, Any], sequence: str, method: str, measures: Iterable[str]) -> str:
    """Headings of those of the measures in which a method is shown to be better than ours."""
    found = verdicts(evaluation, sequence, method)
    return _headings(name for name in measures if found.get(name) == "worse")


def strongest_probe(entries: Entries) -> str | None:
    """The probe that tells the site best."""
    known = [name for name in PROBES if name in entries]
    return max(known, key=lambda name: entries[name]["value"]) if known else None


def _site(ours: Entries, raw: Entries) -> str:
    name = strongest_probe(ours)
    if name is None:
        return "Too few subjects at each site to ask whether the site can still be told."
    found, chance, luck = ours[name], ours[name]["chance"], ours[name]["chance_high"]
    start = f"A probe trained anew ({MEASURES[name].heading}) tells the site of {_percent(found['value'])}{_range(found)} of ours"
    other = strongest_probe(raw)
    before = f" and of {_percent(raw[other]['value'])} of the raw images" if other else ""
    verdict = "the site can still be told" if found["value"] > luck else "that is not told apart from guessing"
    return f"{start}{before}; guessing reaches {_percent(chance)}, {_percent(luck)} with luck: {verdict}."


def _kept(ours: Entries) -> str:
    parts = []
    if edges := ours.get("gradient_correlation"):
        parts.append(f"edges follow the scan's with a correlation of {edges['value']:.3f}{_range(edges, 3)}")
    if made := ours.get("hallucination"):
        parts.append(f"{_percent(made['value'], 1)} of the output's structure is not explained by the scan")
    if contrast := ours.get("contrast_kept"):
        parts.append(f"grey and white matter keep {_percent(contrast['value'])}{_range(contrast)} of their contrast")
    if lesions := ours.get("lesion_preservation"):
        parts.append(f"lesions keep {_percent(lesions['value'])} of their contrast")
    return f"Anatomy kept: {', '.join(parts)}." if parts else ""


def _truth(ours: Entries, raw: Entries) -> str:
    if "truth_nrmse" not in ours or "truth_nrmse" not in raw:
        return ""
    here, before = ours["truth_nrmse"], raw["truth_nrmse"]
    return f"Error to the noise-free truth: {here['value']:.3f}{_range(here, 3)} of its spread, {before['value']:.3f} before."


def _labels(ours: Entries, raw: Entries) -> str:
    if "label_auc_wm" not in ours or "label_auc_wm" not in raw:
        return ""
    here, before = ours["label_auc_wm"], raw["label_auc_wm"]
    said = f"Of the tissues that others drew, white and grey are told apart by brightness with an AUC of {here['value']:.3f}"
    text = f"{said}{_range(here, 3)}, {before['value']:.3f} before"
    if "label_contrast" in ours and "label_contrast" in raw:
        text += (
            f"; their contrast is {ours['label_contrast']['value']:.3f}, {raw['label_contrast']['value']:.3f} before"
        )
    return f"{text}."


def _people(evaluation: Mapping[str, Any], sequence: str) -> str:
    ours, raw = (evaluation[name].get(sequence, {}).get("subject_nearest") for name in (OURS, RAW))
    if not ours or not raw:
        return ""
    return f"The same person is found across sites for {_percent(ours['value'])} of images, {_percent(raw['value'])} before."


def _alternative(evaluation: Mapping[str, Any], sequence: str) -> str:
    name = best_simple(evaluation, sequence)
    if name is None:
        return ""
    found = verdicts(evaluation, sequence, name)
    groups = {way: [measure for measure, own in found.items() if own == way] for way in ("better", "worse", "even")}
    parts = [f"{way} in {_headings(own)}" for way, own in list(groups.items())[:2] if own]
    rest = f"; {len(groups['even'])} further measures do not tell them apart" if groups["even"] else ""
    text = f"Best simple alternative: {shown_name(name)}"
    return f"{text}. Against it ours is {' and '.join(parts)}{rest}." if parts else f"{text}, not told apart from ours."


def _losses(evaluation: Mapping[str, Any], sequence: str) -> str:
    found = verdicts(evaluation, sequence, RAW)
    lost = [name for name, way in found.items() if way == "worse" and name not in AGAINST_SOURCE]
    return f"Against the raw scans ours loses in {_headings(lost)}." if lost else ""


def _beaten(evaluation: Mapping[str, Any], sequence: str) -> str:
    others = [name for name in ordered(evaluation["differences"]) if name != RAW]
    lost = {name: where_it_beats_ours(evaluation, sequence, name, MEASURES) for name in others}
    parts = [f"{shown_name(name)} (in {headings})" for name, headings in lost.items() if headings]
    if parts:
        return f"Ours is beaten by {'; by '.join(parts)}."
    return "No other method is shown to beat ours in any measure." if others else ""


def _headings(names: Iterable[str]) -> str:
    return ", ".join(f"{MEASURES[name].heading}" for name in names)


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _range(found: Mapping[str, Any], digits: int | None = None) -> str:
    """The interval in brackets, in percent without ``digits``; nothing where an end is not known."""
    if found["low"] is None or found["high"] is None:
        return ""
    if digits is None:
        return f" ({100 * found['low']:.0f} to {100 * found['high']:.0f})"
    return f" ({found['low']:.{digits}f} to {found['high']:.{digits}f})"
