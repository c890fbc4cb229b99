"""Selects the subjects, the style encoder and the baselines of an evaluation at a target site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mmh_ray import tracking
from mmh_ray.bids.derivatives import sidecar_path
from mmh_ray.config import Config
from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Case
from mmh_ray.evaluation.metrics.registry import BEST_KNOWN, OURS, RAW
from mmh_ray.files import read_object
from mmh_ray.models.style.embedded import EMBEDDED
from mmh_ray.models.style.encoder import check_same_encoder, make_style_encoder
from mmh_ray.models.style.vectors import StyleVectors
from mmh_ray.models.target.bundle import load_target
from mmh_ray.staging import size_of, staged

TARGET_BASELINES = (RAW, "nyul", BEST_KNOWN)
"""Baselines that are scored at a target: fitted on the target's people, they move scans there, too."""


class TargetSelection(NamedTuple):
    """Cases with their references, and the target's scans of all other people, on which baselines are fitted."""

    cases: list[Case]
    cohort: list[ImageRecord]


def select_at_target(records: Iterable[ImageRecord], site: str) -> TargetSelection:
    """Select subjects who were scanned at the target site and elsewhere; the first of each sequence is pictured.

    Raises
    ------
    DataError
        If there is no such subject.
    """
    records = list(records)
    groups: dict[tuple[str, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        groups[record.sequence, record.subject].append(record)
    cases: list[Case] = []
    for (sequence, subject), images in sorted(groups.items()):
        at_target = [record for record in images if record.site == site]
        elsewhere = [record for record in images if record.site != site]
        if at_target and elsewhere:
            is_first = not cases or cases[-1].sequence != sequence
            cases.append(Case(subject, sequence, tuple(elsewhere), is_pictured=is_first, reference=at_target[0]))
    if not cases:
        sites = ", ".join(sorted({record.site for record in records}))
        received = f"nobody scanned at {site} and elsewhere; sites {sites}"
        raise DataError(received, "traveling subjects", "Name another site.")
    travelers = {case.subject for case in cases}
    cohort = [record for record in records if record.site == site and record.subject not in travelers]
    return TargetSelection(cases, cohort)


def check_unseen(cases: Sequence[Case]) -> None:
    """Raise DataError if the target of `ours` was made from a scan that outputs are compared with."""
    for case in cases:
        recorded_target = _recorded_target(case)
        if not recorded_target or case.reference is None:
            continue
        reference_scan = recorded_target.get("reference")
        training = recorded_target.get("training", {}).get(case.sequence, {})
        seen = [reference_scan, *training.get("images", []), *training.get("validation_images", [])]
        image_id = case.reference.image_id
        if image_id in seen:
            received = f"{image_id}, which the target {recorded_target.get('site', reference_scan)} was made from"
            remedy = "Make the target from scans of other people (travelers are of split test)."
            raise DataError(received, "a scan at the target site that the target was not made from", remedy)


def target_style(cases: Sequence[Case], config: Config) -> StyleVectors:
    """Style vectors of the configured encoder; the sidecars of `ours` must name the same encoder.

    Raises
    ------
    ModelError
        If the target behind `ours` was trained with another style encoder, or the backbone cannot be loaded.
    """
    recorded_target = next(filter(None, map(_recorded_target, cases)), None)
    if recorded_target is None:
        return StyleVectors(config.style)
    if config.style.backbone != EMBEDDED and "training" in recorded_target:
        # the aggregator of such a backbone is stored in the target bundle
        target = load_target(*tracking.resolve_recorded_target(str(recorded_target.get("URI")), config.tracking))
        target.encoder(config.style, 1.0)
        return StyleVectors(config.style, target.aggregator)
    recorded_encoder = recorded_target.get("style_encoder") or recorded_target["training"]["style_encoder"]
    check_same_encoder(recorded_encoder, make_style_encoder(config.style, 1.0).describe())
    return StyleVectors(config.style)


def _recorded_target(case: Case) -> dict[str, Any] | None:
    """The target that made `ours` of a case, from the first sidecar; None without a sidecar or a target."""
    for record in case.records:
        output = record.outputs.get(OURS)
        if output is None:
            continue
        folder, slash, _ = output.rpartition("/")
        sidecar = f"{folder}{slash}{sidecar_path(output).name}"  # text, because a Path would change a URI
        if size_of(sidecar) is not None:
            with staged(sidecar) as (path,):
                return _read_target(path)
    return None


def _read_target(sidecar: str) -> dict[str, Any] | None:
    try:
        recorded_target = read_object(sidecar)["TargetModel"]
        if recorded_target is None or isinstance(recorded_target, dict):
            return recorded_target
        raise ValueError(f"TargetModel is a {type(recorded_target).__name__}")
    except (OSError, ValueError, KeyError) as error:
        received = f"{sidecar}: {type(error).__name__}: {error}"
        raise DataError(received, "the sidecar of a harmonized image", "Harmonize the image again.") from error
