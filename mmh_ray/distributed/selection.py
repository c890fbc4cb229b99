"""Selects the subjects and outputs that an evaluation scores, and the images that baselines are fitted on."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmh_ray.bids.archives import Unmatched, match
from mmh_ray.bids.entities import desc_of
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config
from mmh_ray.distributed.manifest import build_manifest
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.baselines.feature_baselines import FEATURE_METHODS
from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Case
from mmh_ray.evaluation.metrics.cohort import probes_make_sense
from mmh_ray.evaluation.metrics.registry import AGAIN, OURS, RAW, REFERENCE, TRUTH
from mmh_ray.evaluation.statistics.summary import NO_METHODS
from mmh_ray.object_store import is_remote
from mmh_ray.provenance import hash_of

TRAINING_IMAGES = 8
"""Most training images per site and sequence from which baselines are fitted."""
FEW = 6
"""Subjects below which the sign-flip test cannot reach p of .05."""
PICTURED_SITES = 6
"""Most sites in a picture where no person was scanned at several."""
RESERVED = (*NO_METHODS, *FEATURE_METHODS, TRUTH, REFERENCE, *(name for name in BASELINES if name != RAW))
"""Names that no archive may have."""


Subjects = Mapping[str, Sequence[ImageRecord]]
"""Images of one sequence by subject."""


def check_archives(archives: Mapping[str, str]) -> None:
    """Raise ConfigError unless there is an archive `raw` and every name can be used in the results."""
    if RAW not in archives:
        remedy = "Give --archive raw=BIDS, the scans as they were."
        raise ConfigError(f"archives {', '.join(archives) or 'none'}", "one named raw", remedy)
    for name in archives:
        first_pass = name.removesuffix(AGAIN)
        if name.endswith(AGAIN) and first_pass not in archives:
            remedy = f"Add --archive {first_pass}=FOLDER."
            raise ConfigError(f"archive {name}", "also the archive that was harmonized again", remedy)
        is_word = name.replace("_", "").replace("-", "").isalnum()
        if name in RESERVED or not is_word:
            expected = f"letters, digits, - and _, and none of {', '.join(RESERVED)}"
            raise ConfigError(f"archive name {name!r}", expected, "Choose another name.")


def usable_rows(
    archives: Mapping[str, str],
    out: str,
    config: Config,
    notes: list[str],
    problems: list[Unmatched],
    target: str | None = None,
) -> list[dict[str, Any]]:
    """Manifest rows of the usable images, sorted by `image_id`; `outputs` of each holds the output paths by archive.

    Parameters
    ----------
    archives:
        Folder by name; `raw` may also be the table made by `mmh manifest`, whose splits are then kept.
    notes, problems:
        Sequences that are left out are added to ``notes``; unusable scans and missing outputs to ``problems``.
    target:
        Target site that `ours` was moved to: if an image has several outputs, the one named after the site is taken.

    Raises
    ------
    DataError
        If a folder or table cannot be read, or no image of the model's sequences can be used.
    """
    sequences = config.model.sequences
    rows = []
    left_out: Counter[str] = Counter()
    for row in _manifest_rows(archives[RAW], out, config):
        is_known = row["sequence"] in sequences
        if row["status"] != "ok":
            if is_known or row["sequence"] is None:
                reason = row["reason"] or "no reason given"
                problems.append(Unmatched(RAW, row["image_id"], row["status"], reason))
        elif is_known:
            rows.append(row | {"outputs": {}})
        else:
            left_out[row["sequence"]] += 1
    for sequence, count in sorted(left_out.items()):
        notes.append(f"{count} images of {sequence} left out: not in model.sequences")
    if not rows:
        remedy = "Set model.sequences to the archive's suffixes, or see the manifest's column reason."
        raise DataError(f"{archives[RAW]}: no usable image", f"images of {', '.join(sequences)}", remedy)
    rows.sort(key=lambda row: row["image_id"])
    for archive, folder in archives.items():
        if archive != RAW:
            desc = desc_of(target if archive == OURS else None)
            _add_outputs(rows, archive, folder, desc, problems)
    return rows


def choose_cases(records: Iterable[ImageRecord], config: Config, notes: list[str]) -> list[Case]:
    """The subjects of each sequence that `evaluate.subjects` selects.

    Raises
    ------
    DataError
        If there is none.
    """
    by_sequence: dict[str, dict[str, list[ImageRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_sequence[record.sequence][record.subject].append(record)
    cases = []
    for sequence, subjects in sorted(by_sequence.items()):
        chosen = _choose_subjects(subjects, config.evaluate.subjects, sequence, notes)
        pictured = _pictured_subjects(chosen)
        for subject, images in chosen.items():
            cases.append(Case(subject, sequence, tuple(images), is_pictured=subject in pictured))
    if not cases:
        remedy = "Choose evaluate.subjects=all, or an archive with such subjects."
        raise DataError(f"no subject of evaluate.subjects={config.evaluate.subjects}", "one at least", remedy)
    return cases


def training_records(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """The first records of split train per site and sequence, at most :data:`TRAINING_IMAGES` of each."""
    groups: dict[tuple[str, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        if record.split == "train":
            groups[record.sequence, record.site].append(record)
    return [record for group in groups.values() for record in group[:TRAINING_IMAGES]]


def note_untrained(training: Iterable[ImageRecord], cases: Iterable[Case], notes: list[str]) -> None:
    """Note scored sites without a training image, for sequences in which baselines could be fitted."""
    training_sites: dict[str, set[str]] = defaultdict(set)
    scored_sites: dict[str, set[str]] = defaultdict(set)
    for record in training:
        training_sites[record.sequence].add(record.site)
    for case in cases:
        scored_sites[case.sequence] |= {record.site for record in case.records}
    for sequence, sites in sorted(scored_sites.items()):
        untrained = sorted(sites - training_sites[sequence])
        if training_sites[sequence] and untrained:
            notes.append(
                f"{sequence}: no image of split train of {', '.join(untrained)}; baselines were fitted without, and "
                "ComBat and CovBat cannot be"
            )


def data_hash(cases: Sequence[Case]) -> str:
    """Hash of the scored images: evaluations with the same hash can be compared."""
    images = [record for case in cases for record in case.all_records]
    return hash_of(sorted((record.image_id, record.sha256) for record in images))


def _manifest_rows(raw: str, out: str, config: Config) -> list[dict[str, Any]]:
    """Manifest rows of the raw archive; the manifest of a folder is built first."""
    manifest = raw
    if os.path.isdir(raw) or (is_remote(raw) and not raw.endswith(".parquet")):
        manifest = str(Path(out, "manifest.parquet"))
        build_manifest(raw, manifest, config)
    return read_manifest(manifest).to_pylist()


def _add_outputs(rows: list[dict[str, Any]], archive: str, folder: str, desc: str, problems: list[Unmatched]) -> None:
    matched = match(archive, folder, rows, desc)
    problems += matched.unmatched
    for row in rows:
        path = matched.paths.get(row["image_id"])
        if path:
            row["outputs"][archive] = path


def _choose_subjects(subjects: Subjects, kind: str, sequence: str, notes: list[str]) -> Subjects:
    travelers = {subject: images for subject, images in subjects.items() if _count_sites(images) > 1}
    tested = {subject: images for subject, images in subjects.items() if images[0].split == "test"}
    if kind == "auto":
        kind = _automatic_kind(travelers, tested)
    chosen = {"travelers": travelers, "test": tested, "all": subjects}[kind]
    if chosen and not travelers.keys() & chosen.keys():
        notes.append(
            f"{sequence}: no subject at two sites, so no PSNR or SSIM, W1 is between pooled sites, and site and "
            "population cannot be told apart: the sites differ in their people as well as in their scanners"
        )
    if 0 < len(chosen) < FEW:
        notes.append(f"{sequence}: {len(chosen)} subjects; intervals over so few are too narrow")
    trained = sum(images[0].split == "train" for images in chosen.values())
    if trained:
        notes.append(
            f"{sequence}: {trained} of {len(chosen)} scored subjects are of split train, on which baselines were "
            "fitted and which a model may have seen"
        )
    return chosen


def _automatic_kind(travelers: Subjects, tested: Subjects) -> str:
    """Travelers if there are any, otherwise the test split if it is large enough for the probes, otherwise all."""
    if travelers:
        return "travelers"
    tested_records = [record for images in tested.values() for record in images]
    return "test" if probes_make_sense(tested_records) else "all"


def _pictured_subjects(subjects: Subjects) -> set[str]:
    """The subject with the most sites; if all have only one, the first subject of every site."""
    if not subjects:
        return set()
    most_sites = max(subjects, key=lambda subject: _count_sites(subjects[subject]))
    if _count_sites(subjects[most_sites]) > 1:
        return {most_sites}
    first_of_site: dict[str, str] = {}
    for subject, images in subjects.items():
        first_of_site.setdefault(images[0].site, subject)
    return set(list(first_of_site.values())[:PICTURED_SITES])


def _count_sites(records: Iterable[ImageRecord]) -> int:
    return len({record.site for record in records})
