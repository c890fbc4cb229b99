"""The outputs of an image: whether they are up to date, the removal of stale ones, and the rows of the ledger."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from mmh_ray.bids.derivatives import bids_uri, derivative_files, read_sidecar
from mmh_ray.bids.entities import parse
from mmh_ray.bids.output_folder import StoredDerivatives
from mmh_ray.bids.rows import MADE, LedgerRow, ManifestRow, Problem, Status
from mmh_ray.bids.schema import mark_unusable
from mmh_ray.bids.status import utc_now
from mmh_ray.config import HarmonizeConfig
from mmh_ray.errors import DataError
from mmh_ray.harmonization.target_domain import TargetDomain
from mmh_ray.provenance import check_place, hash_of, sha256_file
from mmh_ray.staging import staged, state_of

log = logging.getLogger(__name__)

LEFT = "(the output of an earlier run was kept)"
"""Added to the reason of an image that was not read in this run."""


def input_hash(image: ManifestRow) -> str | None:
    """Hash of the scan (the row's ``sha256``) and of its brain mask, if it has one; None if the scan was not hashed.

    Raises
    ------
    OSError, DataError
        If the mask cannot be read.
    """
    if not image["mask_uri"]:
        return image["sha256"]
    with staged(image["mask_uri"]) as (mask_path,):
        return hash_of([image["sha256"], sha256_file(mask_path)])


def input_state(image: ManifestRow) -> str | None:
    """Hash of names, sizes and times of scan and brain mask, without reading them; None if changes might go unnoticed.

    Raises
    ------
    DataError
        If an object store does not answer.
    """
    places = [image["uri"]]
    if image["mask_uri"]:
        places.append(image["mask_uri"])
    states = [(place, state_of(place)) for place in places]
    is_sure = all(state is not None for _, state in states)
    return hash_of(states) if is_sure else None


def known_hash(state: str | None, earlier_rows: Iterable[LedgerRow]) -> str | None:
    """:func:`input_hash` from an earlier run, if scan and mask are unchanged since; None if they must be read.

    Parameters
    ----------
    state:
        Current :func:`input_state`.
    """
    for row in earlier_rows:
        if state is not None and row["input_state"] == state:
            return row["input_sha256"]
    return None


def provenance(digest: str | None, model_hash: str, domain: TargetDomain) -> dict[str, str | None]:
    """Everything that decides a derivative, under its names in ledger and sidecar."""
    return {"input_sha256": digest, "model_hash": model_hash, "settings_hash": domain.settings_hash}


def seen(image: Path, stored: StoredDerivatives | None) -> contextlib.AbstractContextManager[None]:
    """While the block runs, an image's sidecar is in its local folder, also if the derivative is in an object store."""
    return contextlib.nullcontext() if stored is None else stored.seen(image)


def is_current(
    earlier: LedgerRow | None,
    out: Path,
    digest: str | None,
    model_hash: str,
    domain: TargetDomain,
    stored: StoredDerivatives | None = None,
) -> bool:
    """Whether an image was harmonized before from the same bytes, by the same model and settings, and still exists.

    Ledger row and sidecar must agree: a run that was killed may have replaced only one of them.

    Parameters
    ----------
    stored:
        The derivatives in an object store, if ``out`` is their local folder.
    """
    if earlier is None or earlier["status"] not in MADE or earlier["output"] is None:
        return False
    output = out / earlier["output"]
    expected = provenance(digest, model_hash, domain)
    if not expected.items() <= earlier.items():
        return False
    with seen(output, stored):
        return os.path.isfile(output) and read_sidecar(output).get("Provenance") == expected


def check_places(image: Path, out: Path) -> None:
    """Raise DataError if a link would lead a derivative, or a file that belongs to it, out of the folder ``out``."""
    for path in derivative_files(image):
        check_place(path, out)


def mark_shared_outputs(
    images: Sequence[ManifestRow], domains: Sequence[TargetDomain], settings: HarmonizeConfig
) -> None:
    """Mark, in place, usable images whose derivative would have another image's path, or a path that is too long.

    Paths can be equal on the template's grid, if two images differ only in `space`.
    """
    owner_of_path: dict[PurePosixPath, str] = {}
    for image in images:
        if image["status"] != Status.OK:
            continue
        try:
            paths = [domain.output(image["uri"], settings) for domain in domains]
            for path in paths:
                _check_free(path, owner_of_path)
        except DataError as error:
            mark_unusable(image, error)
        else:
            owner_of_path |= dict.fromkeys(paths, image["image_id"])


def _check_free(path: PurePosixPath, owner_of_path: dict[PurePosixPath, str]) -> None:
    if path in owner_of_path:
        received = f"its output would have the same name as the output of {owner_of_path[path]}"
        raise DataError(received, "different names", "Rename one of them, or keep both on their own grid.")


def remove_stale(
    row: LedgerRow,
    domain: TargetDomain,
    out: Path,
    settings: HarmonizeConfig,
    stored: StoredDerivatives | None = None,
) -> LedgerRow:
    """Remove the outputs of an earlier run for an image that failed or was refused now, as they are out of date.

    If the scan was not read now (no ``input_sha256``) they are kept: nothing shows that they are wrong.

    Parameters
    ----------
    stored:
        The derivatives in an object store, if ``out`` is their local folder.

    Returns
    -------
    The row; if an output was kept, ``output`` and ``reason`` say so.
    """
    source = row["source"] or ""
    try:
        entities = parse(source)
        output = out / domain.output(source, settings)
    except DataError:
        return row  # a scan with such a name never has outputs
    if row["image_id"] != domain.ledger_id(entities.image_id):
        return row  # a second file of an image: the derivative is of the first
    if row["input_sha256"] is None:
        with seen(output, stored):
            sources = read_sidecar(output).get("Sources")
        is_of_this_scan = isinstance(sources, list) and bids_uri(source, source) in sources
        if not is_of_this_scan:
            return row
        kept = row.copy()
        kept["output"] = output.relative_to(out).as_posix()
        kept["reason"] = f"{row['reason']} {LEFT}"
        return kept
    try:
        check_places(output, out)
        for path in derivative_files(output):
            path.unlink(missing_ok=True)
        if stored is not None:
            stored.remove(output)
    except (DataError, OSError) as error:
        log.warning("%s: the output of an earlier run is out of date, but cannot be removed (%s)", output, error)
    return row


def ledger_row(
    image: ManifestRow,
    domain: TargetDomain,
    status: Status,
    problem: Problem | None = None,
    *,
    output: str | None = None,
    input_sha256: str | None = None,
    flags: list[str] | None = None,
) -> LedgerRow:
    """Ledger row of one image and domain; worker and driver add the fields that are the same for all domains."""
    return {
        "image_id": domain.ledger_id(image["image_id"]),
        "target": domain.name,
        "site": image["site"],
        "sequence": image["sequence"],
        "source": image["uri"],
        "output": output,
        "status": status,
        "reason": problem and problem.reason,
        "expected": problem and problem.expected,
        "remedy": problem and problem.remedy,
        "flags": flags,
        "seconds": 0.0,
        "finished": utc_now().isoformat(),
        "input_sha256": input_sha256,
        "input_state": None,
        "model_hash": None,
        "settings_hash": domain.settings_hash,
    }
