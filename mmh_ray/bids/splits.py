"""Splits subjects into train, validation and test, stratified by site and independent of the order of the images."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

from mmh_ray.bids.rows import ManifestRow, Status
from mmh_ray.config import ManifestConfig


def assign_splits(rows: Iterable[ManifestRow], config: ManifestConfig) -> list[ManifestRow]:
    """Copies of the rows with `split` set by subject, independent of the order of the rows.

    Subjects scanned at more than one site are `test`. The others with a usable image are ranked within their site by a
    hash of seed and subject. Val and test take their shares of all, spread over sites in proportion. With three or more
    such subjects, train is never empty, nor is val unless its share is 0.
    """
    copies = [row.copy() for row in rows]
    sites: dict[str, set[str]] = defaultdict(set)
    usable: set[str] = set()
    for row in copies:
        if row["subject"] and row["site"]:
            sites[row["subject"]].add(row["site"])
            if row["status"] == Status.OK:
                usable.add(row["subject"])
    splits = _splits(sites, usable, config)
    for row in copies:
        row["split"] = splits.get(row["subject"]) if row["subject"] else None
    return copies


def _splits(sites: Mapping[str, set[str]], usable: set[str], config: ManifestConfig) -> dict[str, str]:
    """Split of every usable subject."""
    splits = dict.fromkeys(usable, "train")
    subjects_of_site: dict[str, list[str]] = defaultdict(list)
    single_site_subjects = 0
    for subject in sorted(usable, key=lambda label: _draw(config.seed, label)):
        if len(sites[subject]) > 1:
            splits[subject] = "test"
        else:
            subjects_of_site[min(sites[subject])].append(subject)
            single_site_subjects += 1
    val_count, test_count = _split_counts(single_site_subjects, config)
    for split, count in (("val", val_count), ("test", test_count)):
        for site, share in _shares(subjects_of_site, count, config.seed).items():
            chosen = subjects_of_site[site][:share]
            splits |= dict.fromkeys(chosen, split)
            subjects_of_site[site] = subjects_of_site[site][share:]
    return splits


def _draw(seed: int, label: str) -> str:
    return hashlib.sha256(f"{seed}/{label}".encode()).hexdigest()


def _split_counts(subjects: int, config: ManifestConfig) -> tuple[int, int]:
    """Subjects in val and test, leaving at least one for train."""
    val = round(subjects * config.val_fraction)
    test = round(subjects * config.test_fraction)
    if subjects >= 3 and config.val_fraction > 0:
        val = max(val, 1)
    all_but_one = max(subjects - 1, 0)
    val = min(val, all_but_one)
    test = min(test, max(all_but_one - val, 0))
    return val, test


def _shares(subjects_of_site: Mapping[str, list[str]], count: int, seed: int) -> dict[str, int]:
    """Distribute ``count`` over sites in proportion to their subjects, by the largest remainder method."""
    total = sum(len(subjects) for subjects in subjects_of_site.values())
    shares: dict[str, int] = {}
    remainders: dict[str, float] = {}
    for site, subjects in subjects_of_site.items():
        exact = count * len(subjects) / total if total else 0.0
        shares[site] = int(exact)
        remainders[site] = exact - shares[site]
    by_remainder = sorted(shares, key=lambda site: (-remainders[site], _draw(seed, site)))
    left_over = count - sum(shares.values())
    for site in by_remainder[:left_over]:
        shares[site] += 1
    return shares
