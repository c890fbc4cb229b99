"""Who is scored in an evaluation, on what outputs, and who the baselines are fitted on."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmh_ray.bids.archives import match
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.baselines.feature_baselines import FEATURE_METHODS
from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.evaluation.inputs.scans import Case, Row
from mmh_ray.evaluation.metrics.cohort_metrics import probes_make_sense
from mmh_ray.evaluation.metrics.registry import AGAIN, RAW
from mmh_ray.evaluation.statistics.summary import NO_METHODS
from mmh_ray.provenance import hash_of

TRAINING_IMAGES = 8
"""Most training images per site and sequence from which baselines are fitted."""
FEW = 6
"""Subjects below which the sign-flip test cannot reach p of .05."""
PICTURED_SITES = 6
"""Most sites in a picture where no person was scanned at several."""
RESERVED = (*NO_METHODS, *FEATURE_METHODS, *(name for name in BASELINES if name != RAW))
"""Names that no archive may have."""

_COLUMNS = [
    "image_id",
    "uri",
    "subject",
    "site",
    "sequence",
    "split",
    "mask_uri",
    "age",
    "sex",
    "sha256",
    "status",
    "reason",
]


def check_archives(archives: Mapping[str, str]) -> None:
    """Raise ConfigError unless there is an archive `raw` and every name can stand in the results."""
    if RAW not in archives:
        remedy = "Give --archive raw=BIDS, the scans as they were."
        raise ConfigError(f"archives {', '.join(archives) or 'none'}", "one named raw", remedy)
    for name in archives:
        if name.endswith(AGAIN) and name.removesuffix(AGAIN) not in archives:
            remedy = f"Add --archive {name.removesuffix(AGAIN)}=FOLDER."
            raise ConfigError(f"archive {name}", "what was harmonized again as an archive, too", remedy)
        if name in RESERVED or not name.replace("_", "").replace("-", "").isalnum():
            expected = f"letters, digits, - and _, and none of {', '.join(RESERVED)}"
            raise ConfigError(f"archive name {name!r}", expected, "Name it otherwise.")


def usable_rows(
    archives: Mapping[str, str], out: str, config: Config, notes: list[str], problems: list[Row]
) -> list[Row]:
    """Usable images of the raw archive by `image_id`, each with the paths of its outputs by archive under `outputs`.

    Parameters
    ----------
    archives:
        Folder by name; `raw` may also be the table made by `mmh manifest`, whose splits are then kept.
    notes, problems:
        What is left out, scans that cannot be used, and images that an archive has no volume of, are added here.

    Raises
    ------
    DataError
        If a folder or table cannot be read, or no image of the model's sequences can be used.
    """
    raw, sequences = archives[RAW], config.model.sequences
    if os.path.isdir(raw):
        raw = str(Path(out, "manifest.parquet"))
        build_manifest(archives[RAW], raw, config)
    everything = read_manifest(raw).select(_COLUMNS).to_pylist()
    problems += [
        {
            "method": RAW,
            "image_id": row["image_id"],
            "status": row["status"],
            "reason": row["reason"] or "no reason given",
        }
        for row in everything
        if row["status"] != "ok" and row["sequence"] in (None, *sequences)
    ]
    rows = [row for row in everything if row["status"] == "ok"]
    others = [row["sequence"] for row in rows if row["sequence"] not in sequences]
    notes += [f"{others.count(name)} images of {name} left out: not in model.sequences" for name in sorted(set(others))]
    rows = sorted((row for row in rows if row["sequence"] in sequences), key=lambda row: row["image_id"])
    if not rows:
        remedy = "Set model.sequences to the archive's suffixes, or see the manifest's column reason."
        raise DataError(f"{archives[RAW]}: no usable image", f"images of {', '.join(sequences)}", remedy)
    rows = [row | {"outputs": {}} for row in rows]
    for name, root in archives.items():
        if name != RAW:
            found = match(name, root, rows)
            problems += [unmatched._asdict() for unmatched in found.unmatched]
            for row in rows:
                if path := found.paths.get(row["image_id"]):
                    row["outputs"][name] = path
    return rows


def choose_cases(rows: Iterable[Row], config: Config, notes: list[str]) -> list[Case]:
    """The subjects of each sequence that `evaluate.subjects` asks for.

    Raises
    ------
    DataError
        If there is none.
    """
    groups: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["sequence"]][row["subject"]].append(row)
    cases = []
    for sequence, subjects in sorted(groups.items()):
        chosen = _chosen(subjects, config.evaluate.subjects, sequence, notes)
        pictured = _pictured(chosen)
        cases += [Case(name, sequence, tuple(own), name in pictured) for name, own in chosen.items()]
    if not cases:
        remedy = "Choose evaluate.subjects=all, or an archive with such subjects."
        raise DataError(f"no subject of evaluate.subjects={config.evaluate.subjects}", "one at least", remedy)
    return cases


def training_rows(rows: Iterable[Row]) -> list[Row]:
    """At most :data:`TRAINING_IMAGES` of split train per site and sequence, first by image_id."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["split"] == "train":
            groups[row["sequence"], row["site"]].append(row)
    return [row for own in groups.values() for row in own[:TRAINING_IMAGES]]


def note_untrained(training: Iterable[Row], cases: Iterable[Case], notes: list[str]) -> None:
    """Say which scored sites baselines were fitted without; where there is no training image at all, nothing is fitted."""
    fitted: dict[str, set[str]] = defaultdict(set)
    scored: dict[str, set[str]] = defaultdict(set)
    for row in training:
        fitted[row["sequence"]].add(row["site"])
    for case in cases:
        scored[case.sequence] |= {row["site"] for row in case.rows}
    for sequence, sites in sorted(scored.items()):
        if fitted[sequence] and (lacking := sorted(sites - fitted[sequence])):
            notes.append(
                f"{sequence}: no image of split train of {', '.join(lacking)}; baselines were fitted without, and "
                "ComBat and CovBat cannot be"
            )


def data_hash(cases: Sequence[Case]) -> str:
    """Hash of the scored images: two evaluations of one hash can be compared."""
    return hash_of(sorted((row["image_id"], row["sha256"]) for case in cases for row in case.rows))


def _chosen(subjects: dict[str, list[Row]], kind: str, sequence: str, notes: list[str]) -> dict[str, list[Row]]:
    travelers = {name: own for name, own in subjects.items() if _sites(own) > 1}
    tested = {name: own for name, own in subjects.items() if own[0]["split"] == "test"}
    if kind == "auto":
        enough = probes_make_sense(list(itertools.chain(*tested.values())))
        kind = "travelers" if travelers else "test" if enough else "all"
    chosen = {"travelers": travelers, "test": tested, "all": subjects}[kind]
    if chosen and not travelers.keys() & chosen.keys():
        notes.append(
            f"{sequence}: no subject at two sites, so no PSNR or SSIM, W1 is between pooled sites, and site and "
            "population cannot be told apart: who was scanned where differs as well as the scanner"
        )
    if 0 < len(chosen) < FEW:
        notes.append(f"{sequence}: {len(chosen)} subjects; intervals over so few are narrower than what is known")
    if trained := sum(own[0]["split"] == "train" for own in chosen.values()):
        notes.append(
            f"{sequence}: {trained} of {len(chosen)} scored subjects are of split train, on which baselines were "
            "fitted and which a model may have seen"
        )
    return chosen


def _pictured(subjects: Mapping[str, list[Row]]) -> set[str]:
    """The subject with the most sites; where all have one, the first subject of every site."""
    if not subjects:
        return set()
    most = max(subjects, key=lambda name: _sites(subjects[name]))
    if _sites(subjects[most]) > 1:
        return {most}
    first: dict[str, str] = {}
    for name, own in subjects.items():
        first.setdefault(own[0]["site"], name)
    return set(list(first.values())[:PICTURED_SITES])


def _sites(rows: Iterable[Row]) -> int:
    return len({row["site"] for row in rows})
