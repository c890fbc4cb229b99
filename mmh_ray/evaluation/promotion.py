"""Whether one model's evaluation is better than another's: paired over the subjects that both were scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from mmh_ray.config import PromoteConfig
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.catalogue import MEASURES, OURS, text_of
from mmh_ray.evaluation.statistics import Difference, bootstrap, paired_difference

SIGNIFICANT = 0.05
"""Most p of the sign-flip test at which a better interval counts as an improvement."""

_BALANCED = tuple(name for name in MEASURES if name.startswith("site_probe"))

Verdict = Literal["better", "kept", "worse", "unsure"]
"""``unsure``: neither a loss beyond the margin nor its absence is shown."""


class Evaluated(NamedTuple):
    """A model's evaluation: its name, ``about`` of `evaluation.json`, and the table of its images' figures."""

    name: str
    about: Mapping[str, Any]
    images: pd.DataFrame


@dataclass(frozen=True)
class Decision:
    """Whether the model passed, a line per comparison, and what follows in one sentence."""

    passed: bool
    lines: tuple[str, ...]
    outcome: str


def decide(model: Evaluated, holder: Evaluated, rules: PromoteConfig, seed: int = 0) -> Decision:
    """Compare a model with the present holder of an alias, measure by measure and sequence by sequence.

    A measure of ``rules.keep`` that both have must be better or kept: its 95 % interval's worse end stays within the margin. One of
    ``rules.improve`` must be better: the interval lies beyond 0 and the sign-flip test has p of at most :data:`SIGNIFICANT`.

    Raises
    ------
    ConfigError
        If the rules name a measure that there is not, or one of which neither way is better.
    DataError
        If the two were not scored on the same images.
    """
    _check_rules(rules)
    if model.about["data_hash"] != holder.about["data_hash"]:
        remedy = "Run mmh evaluate for both with the same raw archive, settings and sequences."
        raise DataError(f"evaluations of {model.name} and {holder.name} on different images", "the same images", remedy)
    pairs = _paired(model.images, holder.images)
    subjects = min((own["subject"].nunique() for own in pairs.values()), default=0)
    if subjects < rules.least_subjects:
        return Decision(False, (), f"not promoted: {subjects} subjects, {rules.least_subjects} are needed to tell")
    found = {
        (sequence, name): _compare(name, own, rules.margin, seed)
        for sequence, own in pairs.items()
        for name in dict.fromkeys((*rules.keep, *rules.improve))
    }
    lines = tuple(f"{sequence} {text}" for (sequence, _), (_, text) in found.items())
    verdicts = {key: verdict for key, (verdict, _) in found.items() if verdict is not None}
    return _outcome(verdicts, lines, rules, model.name, holder.name)


def _outcome(
    verdicts: Mapping[tuple[str, str], Verdict], lines: tuple[str, ...], rules: PromoteConfig, model: str, holder: str
) -> Decision:
    lost = [key for key, verdict in verdicts.items() if key[1] in rules.keep and verdict in ("worse", "unsure")]
    gained = [key for key, verdict in verdicts.items() if key[1] in rules.improve and verdict == "better"]
    reasons = []
    if lost:
        reasons.append(f"no loss beyond {100 * rules.margin:g} % is excluded for {_listed(lost)}")
    if not gained:
        reasons.append(f"none of {', '.join(rules.improve)} is shown to be better")
    if reasons:
        return Decision(False, lines, f"not promoted: {'; '.join(reasons)}")
    return Decision(
        True, lines, f"{model} is better than {holder} in {_listed(gained)} and not worse where it must not be"
    )


def _compare(name: str, images: pd.DataFrame, margin: float, seed: int) -> tuple[Verdict | None, str]:
    """Verdict and line of one measure; None where an image-by-image figure is lacking."""
    kind = MEASURES[name]
    known = images.dropna(subset=[f"{name}_model", f"{name}_holder"])
    if known.empty:
        return None, f"{kind.heading}: not measured image by image in both"
    strata = known["site"].tolist() if name in _BALANCED else None
    subjects = known["subject"].tolist()
    mine, theirs = (known[f"{name}_{who}"].to_numpy() for who in ("model", "holder"))
    found = paired_difference(mine, theirs, subjects, seed, strata=strata)
    before = bootstrap(theirs, subjects, seed, strata=strata).value
    verdict = _verdict(found, kind.sign, margin * abs(before))
    numbers = f"{text_of(name, before + found.value)} against {text_of(name, before)}"
    ends = f"{text_of(name, found.low)} to {text_of(name, found.high)}"
    return (
        verdict,
        f"{kind.heading} {kind.arrow}: {numbers}, difference {ends}, p {found.p:.2g}, {found.n} subjects: {verdict}",
    )


def _verdict(found: Difference, sign: int, allowed: float) -> Verdict:
    worst, best = sorted((sign * found.low, sign * found.high))
    if worst > 0 and found.p <= SIGNIFICANT:
        return "better"
    if best < -allowed:
        return "worse"
    return "kept" if worst >= -allowed else "unsure"


def _paired(mine: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Ours of both evaluations side by side, by sequence."""
    tables = []
    for suffix, table in (("model", mine), ("holder", theirs)):
        own = table[table["method"] == OURS].set_index("image_id")
        tables.append((own[["sequence", "subject", "site"]], own[[*MEASURES]].add_suffix(f"_{suffix}")))
    both = tables[0][0].join(tables[0][1]).join(tables[1][1], how="inner")
    return {str(sequence): own for sequence, own in both.groupby("sequence")}


def _check_rules(rules: PromoteConfig) -> None:
    for key, names in (("improve", rules.improve), ("keep", rules.keep)):
        for name in names:
            if name not in MEASURES or not MEASURES[name].sign:
                known = ", ".join(own for own, kind in MEASURES.items() if kind.sign)
                raise ConfigError(f"promote.{key}: {name}", f"one of {known}", "Change promote in the YAML file.")


def _listed(keys: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{sequence} {MEASURES[name].heading}" for sequence, name in keys)
