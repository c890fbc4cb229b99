"""Decides whether a model takes over an alias, by comparing its evaluation with that of the present holder.

They are compared on the images that both were scored on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from mmh_ray.config import PromoteConfig
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.metrics.registry import METRICS, OURS, floor_of, text_of
from mmh_ray.evaluation.promotion.comparability import differing_conditions
from mmh_ray.evaluation.statistics.bootstrap import Difference, bootstrap, paired_difference

SIGNIFICANT = 0.05
"""Largest p of the sign-flip test for an improvement."""
MOST_LISTED = 5
"""Maximum number of images listed in a reason."""

_BALANCED = tuple(metric for metric in METRICS if metric.startswith("site_probe"))

Verdict = Literal["better", "kept", "worse", "unsure", "lacking", "silent"]
"""``unsure``: a loss beyond the allowed one is neither shown nor excluded.

``lacking``: measured for the holder, but not, or not on all images, for the model. ``silent``: nothing to compare.
"""


class Evaluated(NamedTuple):
    """A model's evaluation.

    Attributes
    ----------
    name:
        Name of the model.
    about:
        ``about`` in `evaluation.json`.
    images:
        The table of metrics per image.
    entries:
        Entries of ``ours`` in `evaluation.json`, by sequence and metric.
    """

    name: str
    about: Mapping[str, Any]
    images: pd.DataFrame
    entries: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Decision:
    """Whether the model passed, a line per comparison, and the outcome in one sentence."""

    passed: bool
    lines: tuple[str, ...]
    outcome: str


@dataclass(frozen=True)
class _Comparison:
    """Comparison in one metric of one sequence."""

    sequence: str
    metric: str
    verdict: Verdict
    text: str

    @property
    def heading(self) -> str:
        return f"{self.sequence} {METRICS[self.metric].heading}"


def decide(model: Evaluated, holder: Evaluated, rules: PromoteConfig, seed: int = 0) -> Decision:
    """Compare a model with the present holder of an alias, metric by metric and sequence by sequence.

    The model must have been scored on every image that the holder was scored on, and in every metric of ``rules.keep``
    and ``rules.watch`` that the holder has. Values below chance count as chance. The rules:

    - ``rules.keep``: a loss must be excluded. The worse end of the 95 % interval must be within the margin, which is
      at least the last digit that tables show.
    - ``rules.watch``: no loss may be shown. The interval must not be entirely on the worse side.
    - ``rules.improve``: at least one metric must be better. The interval must be entirely on the better side, and p of
      the sign-flip test at most :data:`SIGNIFICANT`.

    Cannot see: the number of attempts; with many attempts, some pass by chance.

    Raises
    ------
    ConfigError
        If the rules name an unknown metric, or one without a better direction.
    DataError
        If the two were not evaluated on the same images under the same conditions.
    """
    _check_rules(rules)
    _check_comparable(model, holder)
    model_images = _images_of_ours(model)
    holder_images = _images_of_ours(holder)
    lacking = sorted(holder_images.index.difference(model_images.index))
    if lacking:
        listed = ", ".join(lacking[:MOST_LISTED])
        if len(lacking) > MOST_LISTED:
            listed += f" and {len(lacking) - MOST_LISTED} more"
        count = f"{len(lacking)} of the {len(holder_images)} images that {holder.name} was scored on"
        return Decision(False, (), f"not promoted: {model.name} was not scored on {count}: {listed}")
    pairs = _paired(model_images, holder_images)
    subjects = min((images["subject"].nunique() for images in pairs.values()), default=0)
    if subjects < rules.least_subjects:
        return Decision(False, (), f"not promoted: {subjects} subjects, at least {rules.least_subjects} are needed")
    comparisons = []
    for sequence, images in pairs.items():
        for metric in dict.fromkeys((*rules.keep, *rules.watch, *rules.improve)):
            comparison = _compare(
                sequence=sequence, name=metric, images=images, model=model, holder=holder, rules=rules, seed=seed
            )
            comparisons.append(comparison)
    return _outcome(comparisons, rules, model.name, holder.name)


def _outcome(comparisons: Sequence[_Comparison], rules: PromoteConfig, model: str, holder: str) -> Decision:
    lines = tuple(f"{comparison.sequence} {comparison.text}" for comparison in comparisons)
    objections = _objections(comparisons, rules, model)
    improved = [
        comparison.heading
        for comparison in comparisons
        if comparison.metric in rules.improve and comparison.verdict == "better"
    ]
    if not improved:
        objections.append(f"none of {', '.join(rules.improve)} is shown to be better")
    if objections:
        return Decision(False, lines, f"not promoted: {'; '.join(objections)}")
    outcome = f"{model} is better than {holder} in {', '.join(improved)} and not worse in any guarded metric"
    return Decision(True, lines, outcome)


def _objections(comparisons: Sequence[_Comparison], rules: PromoteConfig, model: str) -> list[str]:
    """Reasons against the model from the metrics that must not become worse."""
    guards = {*rules.keep, *rules.watch}
    lacking = []
    not_excluded = []
    lost = []
    unguarded = dict.fromkeys(comparison.sequence for comparison in comparisons) if guards else {}
    for comparison in comparisons:
        if comparison.metric not in guards:
            continue
        if comparison.verdict != "silent":
            unguarded.pop(comparison.sequence, None)
        if comparison.verdict == "lacking":
            lacking.append(comparison.heading)
        elif comparison.metric in rules.keep and comparison.verdict in ("worse", "unsure"):
            not_excluded.append(comparison.heading)
        elif comparison.metric not in rules.keep and comparison.verdict == "worse":
            lost.append(comparison.heading)
    objections = {
        f"{model} lacks": lacking,
        f"a loss beyond {100 * rules.margin:g} % cannot be excluded for": not_excluded,
        "a loss is shown for": lost,
        "no metric that must not become worse was measured for": list(unguarded),
    }
    return [f"{objection} {', '.join(names)}" for objection, names in objections.items() if names]


def _compare(
    sequence: str,
    name: str,
    images: pd.DataFrame,
    model: Evaluated,
    holder: Evaluated,
    rules: PromoteConfig,
    seed: int,
) -> _Comparison:
    """Verdict and line of one metric; a metric without values per image is shown, but not used in the decision."""
    metric = METRICS[name]
    holder_has = images[f"{name}_holder"].notna()
    model_lacks = holder_has & images[f"{name}_model"].isna()
    if model_lacks.any():
        lacking = f"{model_lacks.sum()} of the {holder_has.sum()} images with a value for the holder"
        return _Comparison(sequence, name, "lacking", f"{metric.heading}: not measured on {lacking}")
    if holder_has.any():
        verdict, text = _judge(name, images[holder_has], rules, seed)
        return _Comparison(sequence, name, verdict, text)
    model_entry = model.entries.get(sequence, {}).get(name)
    holder_entry = holder.entries.get(sequence, {}).get(name)
    if not holder_entry:
        remark = "not measured for the holder, so not used in the decision"
        return _Comparison(sequence, name, "silent", f"{metric.heading}: {remark}")
    if not model_entry:
        return _Comparison(sequence, name, "lacking", f"{metric.heading}: measured for the holder only")
    values = f"{text_of(name, model_entry['value'])} against {text_of(name, holder_entry['value'])}"
    remark = "a value for the cohort without values per image, so not used in the decision"
    return _Comparison(sequence, name, "silent", f"{metric.heading} {metric.arrow}: {values}, {remark}")


def _judge(name: str, images: pd.DataFrame, rules: PromoteConfig, seed: int) -> tuple[Verdict, str]:
    """Verdict and line of a metric that both models have on the same images."""
    metric = METRICS[name]
    floor = floor_of(name, images["site"].nunique())
    strata = images["site"].tolist() if name in _BALANCED else None
    subjects = images["subject"].tolist()
    model_values = metric.judged(images[f"{name}_model"].to_numpy())
    holder_values = metric.judged(images[f"{name}_holder"].to_numpy())
    difference = paired_difference(model_values, holder_values, subjects, seed, strata=strata, floor=floor)
    before = max(bootstrap(holder_values, subjects, seed, strata=strata).value, floor)
    is_only_watched = name in rules.watch and name not in rules.keep
    allowed = 0 if is_only_watched else _allowed_loss(name, before, rules.margin)
    verdict = _verdict(difference, metric.sign, allowed)

    values = f"{text_of(name, before + difference.value)} against {text_of(name, before)}"
    if metric.better == "one":
        values = f"distance to 1: {values}"
    interval = f"{text_of(name, difference.low)} to {text_of(name, difference.high)}"
    verdict_text = "no loss shown" if is_only_watched and verdict == "unsure" else verdict
    text = (
        f"{metric.heading} {metric.arrow}: {values}, difference {interval}, p {difference.p:.2g}, "
        f"{difference.n} subjects: {verdict_text}"
    )
    return verdict, text


def _allowed_loss(name: str, before: float, margin: float) -> float:
    """The margin's share of the previous value or the metric's yardstick, but at least the last digit shown."""
    metric = METRICS[name]
    scale = abs(before) if metric.yardstick is None else metric.yardstick
    return max(margin * scale, 10.0**-metric.digits)


def _verdict(difference: Difference, sign: int, allowed_loss: float) -> Verdict:
    worst, best = sorted((sign * difference.low, sign * difference.high))
    if worst > 0 and difference.p <= SIGNIFICANT:
        return "better"
    if best < -allowed_loss:
        return "worse"
    return "kept" if worst >= -allowed_loss else "unsure"


def _images_of_ours(evaluated: Evaluated) -> pd.DataFrame:
    images = evaluated.images
    return images[images["method"] == OURS].set_index("image_id")


def _paired(model_images: pd.DataFrame, holder_images: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Metrics of both models side by side, on the images that the holder was scored on, by sequence."""
    columns = [*METRICS]
    paired = holder_images[["sequence", "subject", "site"]]
    paired = paired.join(model_images[columns].add_suffix("_model"))
    paired = paired.join(holder_images[columns].add_suffix("_holder"))
    return {str(sequence): images for sequence, images in paired.groupby("sequence")}


def _check_comparable(model: Evaluated, holder: Evaluated) -> None:
    remedy = "Run mmh evaluate for both with the same raw archive, truth, settings and version of mmh."
    if model.about["data_hash"] != holder.about["data_hash"]:
        raise DataError(f"evaluations of {model.name} and {holder.name} on different images", "the same images", remedy)
    of_model = model.about.get("conditions")
    of_holder = holder.about.get("conditions")
    differing = ["their recorded conditions"]
    if of_model and of_holder:
        differing = differing_conditions(of_model, of_holder)
    if differing:
        received = f"evaluations of {model.name} and {holder.name} that differ in {', '.join(differing)}"
        raise DataError(received, "the same conditions", remedy)


def _check_rules(rules: PromoteConfig) -> None:
    judged = [name for name, metric in METRICS.items() if metric.sign]
    for key in ("improve", "keep", "watch"):
        for name in getattr(rules, key):
            if name not in judged:
                expected = f"one of {', '.join(judged)}"
                raise ConfigError(f"promote.{key}: {name}", expected, "Change promote in the YAML file.")
