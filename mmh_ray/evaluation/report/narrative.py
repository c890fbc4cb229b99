"""An evaluation in sentences: what a reader who is no statistician takes home."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmh_ray.evaluation.metrics.registry import METRICS, OURS, RAW, SIMPLE, TRUTH, ordered, shown_name

PROBES = ("site_probe", "site_probe_cnn", "site_probe_pattern", "site_probe_style")
"""The probes trained anew; the one that tells most counts."""
JUDGED = ("truth_nrmse", *PROBES, "psnr", "w1", "gradient_correlation")
"""Metrics by which the best simple method is chosen: mean rank over those that there are."""
AGAINST_SOURCE = ("gradient_correlation", "structural_dissimilarity", "hallucination", "identity")
"""Metrics of change, in which whoever changes nothing cannot be beaten."""

Entry = Mapping[str, Any]
Entries = Mapping[str, Entry]
"""By metric, as `evaluation.json` holds them: value, low, high, n, and of a probe what guessing reaches."""


def sentences(evaluation: Mapping[str, Any], sequence: str) -> list[str]:
    """What can be said of ours for one sequence; without an archive `ours`, that there is none."""
    ours = evaluation.get(OURS, {}).get(sequence)
    if ours is None:
        return ["There is no archive named ours, so methods stand side by side and no differences are taken."]
    raw = evaluation[RAW].get(sequence, {})
    texts = [
        _on_target(evaluation["about"].get("target"), ours, raw),
        _on_site(ours, raw),
        _on_anatomy(ours),
        _on_truth(ours, raw),
        _on_labels(ours, raw),
        _on_people(evaluation, sequence),
        _on_best_simple(evaluation, sequence),
        _on_losses(evaluation, sequence),
        *_on_better_methods(evaluation, sequence),
    ]
    return [text for text in texts if text]


def best_simple(evaluation: Mapping[str, Any], sequence: str) -> str | None:
    """The simple method of the best mean rank over :data:`JUDGED`; None without any."""
    candidates = {method: evaluation[method][sequence] for method in SIMPLE if sequence in evaluation.get(method, {})}
    if not candidates:
        return None
    ranks = dict.fromkeys(candidates, 0)
    for metric in JUDGED:
        worth = {method: _worth(metric, entries[metric]) for method, entries in candidates.items() if metric in entries}
        for method, value in worth.items():
            ranks[method] += sum(other > value for other in worth.values())
    return min(ranks, key=lambda method: ranks[method])


def verdicts(evaluation: Mapping[str, Any], sequence: str, method: str) -> dict[str, str]:
    """``better``, ``worse`` or ``even`` of ours against a method by metric; ``even``: the interval holds 0."""
    differences = evaluation["differences"].get(method, {}).get(sequence, {})
    verdict_of = {}
    for name, metric in METRICS.items():
        difference = differences.get(name)
        if not difference or not metric.sign or difference["low"] is None or difference["high"] is None:
            continue
        low, high = sorted((metric.sign * difference["low"], metric.sign * difference["high"]))
        if low > 0:
            verdict_of[name] = "better"
        elif high < 0:
            verdict_of[name] = "worse"
        else:
            verdict_of[name] = "even"
    return verdict_of


def where_it_beats_ours(evaluation: Mapping[str, Any], sequence: str, method: str, metrics: Iterable[str]) -> str:
    """Headings of those of the metrics in which a method is shown to be better than ours."""
    verdict_of = verdicts(evaluation, sequence, method)
    beaten = [metric for metric in metrics if verdict_of.get(metric) == "worse"]
    return _headings(beaten)


def strongest_probe(entries: Entries) -> str | None:
    """The probe that tells the site best."""
    values = {probe: entries[probe]["value"] for probe in PROBES if probe in entries}
    if not values:
        return None
    return max(values, key=lambda probe: values[probe])


def _worth(metric: str, entry: Entry) -> float:
    """A value whose more is better; a probe below chance is worth no more than one at it."""
    value = entry["value"]
    if metric in PROBES:
        value = max(value, entry["chance"])
    return METRICS[metric].worth(value)


def _on_target(target: str | None, ours: Entries, raw: Entries) -> str:
    after = ours.get("psnr")
    before = raw.get("psnr")
    if target is None or after is None or before is None:
        return ""
    return (
        f"The same person's own scan at {target} is reached with a PSNR of "
        f"{after['value']:.1f} dB{_range(after, 1)}, {before['value']:.1f} before."
    )


def _on_site(ours: Entries, raw: Entries) -> str:
    probe = strongest_probe(ours)
    if probe is None:
        return "Too few subjects at each site to ask whether the site can still be told."
    entry = ours[probe]
    chance = _percent(entry["chance"])
    luck = _percent(entry["chance_high"])
    share = f"{_percent(entry['value'])}{_range(entry)} of ours"
    raw_probe = strongest_probe(raw)
    before = f" and of {_percent(raw[raw_probe]['value'])} of the raw images" if raw_probe else ""
    is_told = entry["value"] > entry["chance_high"]
    verdict = "the site can still be told" if is_told else "that is not told apart from guessing"
    return (
        f"A probe trained anew ({METRICS[probe].heading}) tells the site of {share}{before}; "
        f"guessing reaches {chance}, {luck} with luck: {verdict}."
    )


def _on_anatomy(ours: Entries) -> str:
    parts = []
    if edges := ours.get("gradient_correlation"):
        parts.append(f"edges follow the scan's with a correlation of {edges['value']:.3f}{_range(edges, 3)}")
    if hallucination := ours.get("hallucination"):
        share = _percent(hallucination["value"], 1)
        parts.append(f"{share} of the output's structure is not explained by the scan")
    if contrast := ours.get("contrast_kept"):
        parts.append(f"grey and white matter keep {_percent(contrast['value'])}{_range(contrast)} of their contrast")
    if lesions := ours.get("lesion_preservation"):
        parts.append(f"lesions keep {_percent(lesions['value'])} of their contrast")
    return f"Anatomy kept: {', '.join(parts)}." if parts else ""


def _on_truth(ours: Entries, raw: Entries) -> str:
    after = ours.get("truth_nrmse")
    before = raw.get("truth_nrmse")
    if after is None or before is None:
        return ""
    error = f"{after['value']:.3f}{_range(after, 3)}"
    return f"Error to the noise-free truth: {error} of its spread, {before['value']:.3f} before."


def _on_labels(ours: Entries, raw: Entries) -> str:
    after = ours.get("label_auc_wm")
    before = raw.get("label_auc_wm")
    if after is None or before is None:
        return ""
    text = (
        "Of the tissues that others drew, white and grey are told apart by brightness with an AUC of "
        f"{after['value']:.3f}{_range(after, 3)}, {before['value']:.3f} before"
    )
    contrast = ours.get("label_contrast")
    contrast_before = raw.get("label_contrast")
    if contrast is not None and contrast_before is not None:
        text += f"; their contrast is {contrast['value']:.3f}, {contrast_before['value']:.3f} before"
    return f"{text}."


def _on_people(evaluation: Mapping[str, Any], sequence: str) -> str:
    after = evaluation[OURS].get(sequence, {}).get("subject_nearest")
    before = evaluation[RAW].get(sequence, {}).get("subject_nearest")
    if not after or not before:
        return ""
    share = _percent(after["value"])
    return f"The same person is found across sites for {share} of images, {_percent(before['value'])} before."


def _on_best_simple(evaluation: Mapping[str, Any], sequence: str) -> str:
    method = best_simple(evaluation, sequence)
    if method is None:
        return ""
    metrics_by_verdict: dict[str, list[str]] = {"better": [], "worse": [], "even": []}
    for metric, verdict in verdicts(evaluation, sequence, method).items():
        metrics_by_verdict[verdict].append(metric)
    parts = []
    for verdict in ("better", "worse"):
        if metrics_by_verdict[verdict]:
            parts.append(f"{verdict} in {_headings(metrics_by_verdict[verdict])}")
    text = f"Best simple alternative: {shown_name(method)}"
    if not parts:
        return f"{text}, not told apart from ours."
    even = len(metrics_by_verdict["even"])
    rest = f"; {even} further metrics do not tell them apart" if even else ""
    return f"{text}. Against it ours is {' and '.join(parts)}{rest}."


def _on_losses(evaluation: Mapping[str, Any], sequence: str) -> str:
    lost = []
    for metric, verdict in verdicts(evaluation, sequence, RAW).items():
        if verdict == "worse" and metric not in AGAINST_SOURCE:
            lost.append(metric)
    if not lost:
        return ""
    return f"Against the raw scans ours loses in {_headings(lost)}."


def _on_better_methods(evaluation: Mapping[str, Any], sequence: str) -> list[str]:
    """A sentence for each method that beats ours somewhere."""
    others = [method for method in ordered(evaluation["differences"]) if method not in (RAW, TRUTH)]
    texts = []
    for method in others:
        headings = where_it_beats_ours(evaluation, sequence, method, METRICS)
        if headings:
            texts.append(f"Ours is beaten by {shown_name(method)} in {headings}.")
    if others and not texts:
        texts.append("No other method is shown to beat ours in any metric.")
    return texts


def _headings(metrics: Iterable[str]) -> str:
    return ", ".join(METRICS[metric].heading for metric in metrics)


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _range(entry: Entry, digits: int | None = None) -> str:
    """The interval in brackets, in percent without ``digits``; nothing where an end is not known."""
    low = entry["low"]
    high = entry["high"]
    if low is None or high is None:
        return ""
    if digits is None:
        return f" ({100 * low:.0f} to {100 * high:.0f})"
    return f" ({low:.{digits}f} to {high:.{digits}f})"
