"""Train, validation and test: by subject, stratified by site, the same for every order of the images."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from mmh_ray.config import ManifestConfig

Row = dict[str, Any]


def assign_splits(rows: Iterable[Mapping[str, Any]], config: ManifestConfig) -> list[Row]:
    """Copies of the rows with `split` set by subject: the same for every order of the rows.

    Subjects seen at more than one site are `test`. The others that have a usable image are ranked within their site by
    a hash of seed and subject; val and test take their shares of all, spread over sites in proportion. From three such
    subjects on neither train nor (unless its share is 0) val is empty.
    """
    copies = [dict(row) for row in rows]
    sites: dict[str, set[str]] = defaultdict(set)
    usable: set[str] = set()
    for row in copies:
        if row["subject"] and row["site"]:
            sites[row["subject"]].add(row["site"])
            if row["status"] == "ok":
                usable.add(row["subject"])
    splits = {subject: "test" for subject in usable if len(sites[subject]) > 1}
    pools: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(usable - splits.keys(), key=lambda label: _draw(config.seed, label)):
        pools[min(sites[subject])].append(subject)
    val, test = _split_counts(sum(map(len, pools.values())), config)
    for split, count in (("val", val), ("test", test)):
        for site, share in _shares(pools, count, config.seed).items():
            splits |= dict.fromkeys(pools[site][:share], split)
            pools[site] = pools[site][share:]
    for row in copies:
        row["split"] = splits.get(row["subject"], "train") if row["subject"] in usable else None
    return copies


def _draw(seed: int, label: str) -> str:
    return hashlib.sha256(f"{seed}/{label}".encode()).hexdigest()


def _split_counts(subjects: int, config: ManifestConfig) -> tuple[int, int]:
    """Subjects in val and test, leaving at least one for train."""
    val, test = round(subjects * config.val_fraction), round(subjects * config.test_fraction)
    val = max(val, 1) if subjects >= 3 and config.val_fraction > 0 else val
    val = min(val, max(subjects - 1, 0))
    return val, min(test, max(subjects - 1 - val, 0))


def _shares(pools: Mapping[str, list[str]], count: int, seed: int) -> dict[str, int]:
    """``count`` spread over sites in proportion to their subjects; largest remainders get what rounding leaves."""
    total = sum(map(len, pools.values()))
    exact = {site: count * len(pool) / total if total else 0.0 for site, pool in pools.items()}
    shares = {site: int(value) for site, value in exact.items()}
    by_remainder = sorted(exact, key=lambda site: (shares[site] - exact[site], _draw(seed, site)))
    for site in by_remainder[: count - sum(shares.values())]:
        shares[site] += 1
    return shares
