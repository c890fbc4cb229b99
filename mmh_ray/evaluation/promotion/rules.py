"""Whether one model's evaluation is better than another's: paired over the subjects that both were scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from mmh_ray.config import PromoteConfig
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.metrics.registry import MEASURES, OURS, floor_of, text_of
from mmh_ray.evaluation.promotion.comparability import unlike
from mmh_ray.evaluation.statistics.bootstrap import Difference, bootstrap, paired_difference

SIGNIFICANT = 0.05
"""Most p of the sign-flip test at which a better interval counts as an improvement."""
NAMED = 5
"""Most images named in a reason."""

_BALANCED = tuple(name for name in MEASURES if name.startswith("site_probe"))

Verdict = Literal["better", "kept", "worse", "unsure", "lacking", "silent"]
"""``unsure``: neither a loss beyond what is allowed nor its absence is shown; ``lacking``: measured of the holder, not, or not everywhere,
of the model; ``silent``: nothing to compare."""


class Evaluated(NamedTuple):
    """A model's evaluation: its name, ``about`` of `evaluation.json`, the table of its images' figures, and its entries by sequence."""

    name: str
    about: Mapping[str, Any]
    images: pd.DataFrame
    entries: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Decision:
    """Whether the model passed, a line per comparison, and what follows in one sentence."""

    passed: bool
    lines: tuple[str, ...]
    outcome: str


@dataclass(frozen=True)
class _Compared:
    """One measure of one sequence."""

    sequence: str
    name: str
    verdict: Verdict
    text: str

    @property
    def heading(self) -> str:
        return f"{self.sequence} {MEASURES[self.name].heading}"


def decide(model: Evaluated, holder: Evaluated, rules: PromoteConfig, seed: int = 0) -> Decision:
    """Compare a model with the present holder of an alias, measure by measure and sequence by sequence.

    It must have been scored on every image that the holder was scored on, and in every measure of ``rules.keep`` and ``rules.watch`` that
    the holder has. Of ``rules.keep`` a loss must be excluded: the 95 % interval's worse end stays within the margin, which is never less
    than the last digit that tables show. Of ``rules.watch`` no loss may be shown: the interval does not lie wholly on the worse side. Of
    ``rules.improve`` one must be better: the interval lies beyond 0 and the sign-flip test has p of at most :data:`SIGNIFICANT`. Values
    below chance count as chance. Cannot see: how often it was tried; of many tries, some pass by luck.

    Raises
    ------
    ConfigError
        If the rules name a measure that there is not, or one of which neither way is better.
    DataError
        If the two were not evaluated on the same images under the same conditions.
    """
    _check_rules(rules)
    _check_alike(model, holder)
    mine, theirs = (_of_ours(evaluated.images) for evaluated in (model, holder))
    if lost := sorted(theirs.index.difference(mine.index)):
        named = ", ".join(lost[:NAMED]) + (f" and {len(lost) - NAMED} more" if len(lost) > NAMED else "")
        reason = (
            f"{model.name} was not scored on {len(lost)} of the {len(theirs)} images that {holder.name} was scored on"
        )
        return Decision(False, (), f"not promoted: {reason}: {named}")
    pairs = _paired(mine, theirs)
    subjects = min((own["subject"].nunique() for own in pairs.values()), default=0)
    if subjects < rules.least_subjects:
        return Decision(False, (), f"not promoted: {subjects} subjects, {rules.least_subjects} are needed to tell")
    names = dict.fromkeys((*rules.keep, *rules.watch, *rules.improve))
    found = [
        _compare(sequence, name, own, (model, holder), rules, seed) for sequence, own in pairs.items() for name in names
    ]
    return _outcome(found, rules, model.name, holder.name)


def _outcome(found: Sequence[_Compared], rules: PromoteConfig, model: str, holder: str) -> Decision:
    lines = tuple(f"{own.sequence} {own.text}" for own in found)
    guards = {*rules.keep, *rules.watch}
    sequences = dict.fromkeys(own.sequence for own in found)
    guarded = {own.sequence for own in found if own.name in guards and own.verdict != "silent"}
    reasons = {
        f"{model} lacks": [own.heading for own in found if own.name in guards and own.verdict == "lacking"],
        f"no loss beyond {100 * rules.margin:g} % is excluded for": [
            own.heading for own in found if own.name in rules.keep and own.verdict in ("worse", "unsure")
        ],
        "a loss is shown for": [
            own.heading
            for own in found
            if own.name in rules.watch and own.verdict == "worse" and own.name not in rules.keep
        ],
        "nothing that must not be worse was measured in": [
            name for name in sequences if guards and name not in guarded
        ],
    }
    said = [f"{reason} {', '.join(names)}" for reason, names in reasons.items() if names]
    gained = [own.heading for own in found if own.name in rules.improve and own.verdict == "better"]
    if not gained:
        said.append(f"none of {', '.join(rules.improve)} is shown to be better")
    if said:
        return Decision(False, lines, f"not promoted: {'; '.join(said)}")
    outcome = f"{model} is better than {holder} in {', '.join(gained)} and not worse where it must not be"
    return Decision(True, lines, outcome)


def _compare(
    sequence: str, name: str, images: pd.DataFrame, both: tuple[Evaluated, Evaluated], rules: PromoteConfig, seed: int
) -> _Compared:
    """Verdict and line of one measure; a figure of the whole cohort, which no image has, is shown and decides nothing."""
    kind, has = MEASURES[name], images[f"{name}_holder"].notna()
    lost = has & images[f"{name}_model"].isna()
    mine, theirs = (evaluated.entries.get(sequence, {}).get(name) for evaluated in both)
    if has.any() and lost.any():
        text = f"{kind.heading}: not measured on {lost.sum()} of the {has.sum()} images on which the holder's was"
        return _Compared(sequence, name, "lacking", text)
    if has.any():
        return _Compared(sequence, name, *_judge(name, images[has], rules, seed))
    if theirs and not mine:
        return _Compared(sequence, name, "lacking", f"{kind.heading}: not measured, and the holder's was")
    if theirs and mine:
        numbers = f"{text_of(name, mine['value'])} against {text_of(name, theirs['value'])}"
        text = (
            f"{kind.heading} {kind.arrow}: {numbers}, one figure for the cohort and none for an image: decides nothing"
        )
        return _Compared(sequence, name, "silent", text)
    return _Compared(sequence, name, "silent", f"{kind.heading}: not measured of the holder: decides nothing")


def _judge(name: str, images: pd.DataFrame, rules: PromoteConfig, seed: int) -> tuple[Verdict, str]:
    kind, floor = MEASURES[name], floor_of(name, images["site"].nunique())
    strata = images["site"].tolist() if name in _BALANCED else None
    subjects = images["subject"].tolist()
    mine, theirs = (kind.judged(images[f"{name}_{who}"].to_numpy()) for who in ("model", "holder"))
    found = paired_difference(mine, theirs, subjects, seed, strata=strata, floor=floor)
    before = max(bootstrap(theirs, subjects, seed, strata=strata).value, floor)
    is_watched = name in rules.watch and name not in rules.keep
    verdict = _verdict(found, kind.sign, 0 if is_watched else _allowed(name, before, rules.margin))
    numbers = f"{text_of(name, before + found.value)} against {text_of(name, before)}"
    numbers = f"off 1 by {numbers}" if kind.better == "one" else numbers
    ends = f"{text_of(name, found.low)} to {text_of(name, found.high)}"
    said = "no loss shown" if is_watched and verdict == "unsure" else verdict
    text = f"{kind.heading} {kind.arrow}: {numbers}, difference {ends}, p {found.p:.2g}, {found.n} subjects: {said}"
    return verdict, text


def _allowed(name: str, before: float, margin: float) -> float:
    """Loss that passes: the margin's share of what there was, or of the measure's yardstick; at least the last digit that is shown."""
    kind = MEASURES[name]
    whole = abs(before) if kind.yardstick is None else kind.yardstick
    return max(margin * whole, 10.0**-kind.digits)


def _verdict(found: Difference, sign: int, allowed: float) -> Verdict:
    worst, best = sorted((sign * found.low, sign * found.high))
    if worst > 0 and found.p <= SIGNIFICANT:
        return "better"
    if best < -allowed:
        return "worse"
    return "kept" if worst >= -allowed else "unsure"


def _of_ours(images: pd.DataFrame) -> pd.DataFrame:
    return images[images["method"] == OURS].set_index("image_id")


def _paired(mine: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Figures of both on the images that the holder was scored on, side by side, by sequence."""
    facts, names = theirs[["sequence", "subject", "site"]], [*MEASURES]
    both = facts.join(mine[names].add_suffix("_model")).join(theirs[names].add_suffix("_holder"))
    return {str(sequence): own for sequence, own in both.groupby("sequence")}


def _check_alike(model: Evaluated, holder: Evaluated) -> None:
    remedy = "Run mmh evaluate for both with the same raw archive, truth, settings and version of mmh."
    if model.about["data_hash"] != holder.about["data_hash"]:
        raise DataError(f"evaluations of {model.name} and {holder.name} on different images", "the same images", remedy)
    one, other = (evaluated.about.get("conditions") for evaluated in (model, holder))
    names = unlike(one, other) if one and other else ["what they say of their conditions"]
    if names:
        received = f"evaluations of {model.name} and {holder.name} that differ in {', '.join(names)}"
        raise DataError(received, "the same conditions", remedy)


def _check_rules(rules: PromoteConfig) -> None:
    for key, names in (("improve", rules.improve), ("keep", rules.keep), ("watch", rules.watch)):
        for name in names:
            if name not in MEASURES or not MEASURES[name].sign:
                known = ", ".join(own for own, kind in MEASURES.items() if kind.sign)
                raise ConfigError(f"promote.{key}: {name}", f"one of {known}", "Change promote in the YAML file.")
