"""Finds the site of an image from tables, sidecars and names, or the reason why it is unclear."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmh_ray.bids.sidecars import Inherited
from mmh_ray.bids.tables import Table
from mmh_ray.bids.text import Findings, printable, text_of

log = logging.getLogger(__name__)

HELP = (
    "Give a `site` column in participants.tsv, sub-X_sessions.tsv or the scans.tsv, a `Site` key in the JSON sidecar, "
    "or manifest.site_pattern, a regular expression on the relative path such as '(?P<site>[a-z]+)-'."
)
CORRECT = (
    "Correct the table, or give manifest.site_pattern, a regular expression on the relative path such as "
    "'(?P<site>[a-z]+)-'."
)


class Listed(NamedTuple):
    """A table, and the key of an image's row in it: subject, session or file."""

    table: Table
    about: str


@dataclass(frozen=True)
class Site:
    """Name of a site and its source; without a name, the reason if a source was unclear."""

    name: str | None
    source: str = ""
    why: str | None = None


def site_of(relative: str, tables: Sequence[Listed], sidecar: Inherited, pattern: re.Pattern[str] | None) -> Site:
    """The site of an image.

    The most specific table with a site counts. If a table has sites, but no row, a damaged row or several sites for
    this image, the site is unclear. Sidecars count only if no table for the image has sites, because a site could have
    different names in both. The user's pattern counts if all other sources give no site.

    Parameters
    ----------
    tables:
        The most specific one last.
    """
    site = _of_tables(tables)
    if site.name is None and site.why is None:
        site = _of_sidecars(sidecar)
    if site.name is None and pattern is not None:
        match = pattern.search(relative)
        name = text_of(match["site"]) if match else None
        if name is not None:
            return Site(name, "manifest.site_pattern")
    return site


def _of_tables(tables: Sequence[Listed]) -> Site:
    why = None
    for table, about in reversed(tables):
        if not table.has_sites:
            continue
        name = table.values(about).get("site")
        if name is not None:
            return Site(name, "tables")
        why = table.why_no_site(about)
        if not table.leaves_site_empty(about):
            break  # less specific tables may give a wrong site
    return Site(None, why=why)


def _of_sidecars(sidecar: Inherited) -> Site:
    name = text_of(sidecar.values.get("Site"))
    if name is not None:
        return Site(name, "Site in sidecars")
    if sidecar.unreadable is not None:  # it may have another name, or a Site
        return Site(None, why=f"{printable(sidecar.unreadable)} cannot be read")
    name = text_of(sidecar.values.get("InstitutionName"))
    return Site(name, "InstitutionName in sidecars")


def note_mixtures(images: Mapping[str, Site], findings: Findings) -> None:
    """Note sites from another source than most, and sites whose names differ only in case and punctuation.

    Parameters
    ----------
    images:
        Sites by `image_id`.
    """
    by_source: defaultdict[str, list[str]] = defaultdict(list)
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, site in images.items():
        if site.name is None:
            continue
        by_source[site.source].append(f"{image_id} ({site.name})")
        letters = re.sub(r"[\W_]", "", site.name.casefold())
        spellings[letters].add(site.name)
    counts = [f"{len(names)} from {source}" for source, names in by_source.items()]
    log.info("sites: %s", ", ".join(counts) or "none")
    usual = max(by_source, key=lambda source: len(by_source[source]), default="")
    for source, names in by_source.items():
        if source != usual:
            findings.note(f"a site from {source}, where most are from {usual}", names)
    alike = []
    for letters, spelt in sorted(spellings.items()):
        if letters and len(spelt) > 1:
            alike.append(" / ".join(sorted(spelt)))
    findings.note("sites whose names differ only in case, spaces or punctuation", alike)
