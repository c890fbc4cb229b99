"""Turns an evaluation into sentences for readers who are not statisticians."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmh_ray.evaluation.metrics.registry import METRICS, OURS, RAW, SIMPLE, TRUTH, ordered, shown_name

PROBES = ("site_probe", "site_probe_cnn", "site_probe_pattern", "site_probe_style")
"""The retrained probes; the most accurate one is reported."""
JUDGED = ("truth_nrmse", *PROBES, "psnr", "w1", "gradient_correlation")
"""Metrics that choose the best simple method, by its mean rank over those that are available."""
AGAINST_SOURCE = ("gradient_correlation", "structural_dissimilarity", "hallucination", "identity")
"""Metrics of change, in which a method that changes nothing always scores best."""

Entry = Mapping[str, Any]
Entries = Mapping[str, Entry]
"""By metric, as in `evaluation.json`: value, low, high, n, and chance levels for a probe."""


def sentences(evaluation: Mapping[str, Any], sequence: str) -> list[str]:
    """Sentences about ours for one sequence; without an archive `ours`, one sentence that says so."""
    ours = evaluation.get(OURS, {}).get(sequence)
    if ours is None:
        return ["There is no archive named ours, so methods are listed without differences to it."]
    raw = evaluation[RAW].get(sequence, {})
    texts = [
        _target_sentence(evaluation["about"].get("target"), ours, raw),
        _site_sentence(ours, raw),
        _anatomy_sentence(ours),
        _truth_sentence(ours, raw),
        _labels_sentence(ours, raw),
        _people_sentence(ours, raw),
        _best_simple_sentence(evaluation, sequence),
        _losses_sentence(evaluation, sequence),
        *_better_methods_sentences(evaluation, sequence),
    ]
    return [text for text in texts if text]


def best_simple(evaluation: Mapping[str, Any], sequence: str) -> str | None:
    """The simple method with the best mean rank over :data:`JUDGED`; None if there is none."""
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
    """Whether ours is ``better``, ``worse`` or ``even`` (the interval includes 0) compared with a method, by metric."""
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


def headings_beating_ours(evaluation: Mapping[str, Any], sequence: str, method: str, metrics: Iterable[str]) -> str:
    """Headings of the metrics in which a method is shown to be better than ours."""
    verdict_of = verdicts(evaluation, sequence, method)
    return _headings(metric for metric in metrics if verdict_of.get(metric) == "worse")


def strongest_probe(entries: Entries) -> str | None:
    """The probe with the highest accuracy; None without any."""
    values = {probe: entries[probe]["value"] for probe in PROBES if probe in entries}
    if not values:
        return None
    return max(values, key=lambda probe: values[probe])


def _worth(metric: str, entry: Entry) -> float:
    """The value, signed so that higher is better; a probe below chance counts as at chance."""
    value = entry["value"]
    if metric in PROBES:
        value = max(value, entry["chance"])
    return METRICS[metric].worth(value)


def _target_sentence(target: str | None, ours: Entries, raw: Entries) -> str:
    after = ours.get("psnr")
    before = raw.get("psnr")
    if target is None or after is None or before is None:
        return ""
    psnr = f"{after['value']:.1f} dB{_range(after, 1)}"
    return f"PSNR to the same person's scan at {target}: {psnr}, {before['value']:.1f} dB before."


def _site_sentence(ours: Entries, raw: Entries) -> str:
    probe = strongest_probe(ours)
    if probe is None:
        return "Too few subjects per site to test whether the site can be recognised."
    entry = ours[probe]
    chance = _percent(entry["chance"])
    luck = _percent(entry["chance_high"])
    share = f"{_percent(entry['value'])}{_range(entry)} of our images"
    raw_probe = strongest_probe(raw)
    before = f" and of {_percent(raw[raw_probe]['value'])} of the raw images" if raw_probe else ""
    is_recognised = entry["value"] > entry["chance_high"]
    verdict = "the site can still be recognised" if is_recognised else "this is no better than guessing"
    return (
        f"The strongest probe ({METRICS[probe].heading}) recognises the site of {share}{before}; "
        f"guessing reaches {chance}, {luck} with luck: {verdict}."
    )


def _anatomy_sentence(ours: Entries) -> str:
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


def _truth_sentence(ours: Entries, raw: Entries) -> str:
    after = ours.get("truth_nrmse")
    before = raw.get("truth_nrmse")
    if after is None or before is None:
        return ""
    error = f"{after['value']:.3f}{_range(after, 3)}"
    return f"Error to the noise-free truth: {error} of its standard deviation, {before['value']:.3f} before."


def _labels_sentence(ours: Entries, raw: Entries) -> str:
    after = ours.get("label_auc_wm")
    before = raw.get("label_auc_wm")
    if after is None or before is None:
        return ""
    auc = f"{after['value']:.3f}{_range(after, 3)}"
    text = f"Brightness separates labelled white and grey matter with an AUC of {auc}, {before['value']:.3f} before"
    contrast = ours.get("label_contrast")
    contrast_before = raw.get("label_contrast")
    if contrast is not None and contrast_before is not None:
        text += f"; their contrast is {contrast['value']:.3f}, {contrast_before['value']:.3f} before"
    return f"{text}."


def _people_sentence(ours: Entries, raw: Entries) -> str:
    after = ours.get("subject_nearest")
    before = raw.get("subject_nearest")
    if after is None or before is None:
        return ""
    share = _percent(after["value"])
    return f"The same person is found across sites for {share} of images, {_percent(before['value'])} before."


def _best_simple_sentence(evaluation: Mapping[str, Any], sequence: str) -> str:
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
        return f"{text}, without a clear difference to ours."
    even = len(metrics_by_verdict["even"])
    rest = f"; no clear difference in {even} more" if even else ""
    return f"{text}. Compared with it, ours is {' and '.join(parts)}{rest}."


def _losses_sentence(evaluation: Mapping[str, Any], sequence: str) -> str:
    metrics = [metric for metric in METRICS if metric not in AGAINST_SOURCE]
    headings = headings_beating_ours(evaluation, sequence, RAW, metrics)
    return f"Ours is worse than the raw scans in {headings}." if headings else ""


def _better_methods_sentences(evaluation: Mapping[str, Any], sequence: str) -> list[str]:
    """A sentence for each method that is better than ours in any metric."""
    others = [method for method in ordered(evaluation["differences"]) if method not in (RAW, TRUTH)]
    texts = []
    for method in others:
        headings = headings_beating_ours(evaluation, sequence, method, METRICS)
        if headings:
            texts.append(f"Ours is worse than {shown_name(method)} in {headings}.")
    if others and not texts:
        texts.append("No other method is shown to be better than ours in any metric.")
    return texts


def _headings(metrics: Iterable[str]) -> str:
    return ", ".join(METRICS[metric].heading for metric in metrics)


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _range(entry: Entry, digits: int | None = None) -> str:
    """The interval in brackets, in percent without ``digits``; empty if an end is unknown."""
    low = entry["low"]
    high = entry["high"]
    if low is None or high is None:
        return ""
    if digits is None:
        return f" ({100 * low:.0f} to {100 * high:.0f})"
    return f" ({low:.{digits}f} to {high:.{digits}f})"
