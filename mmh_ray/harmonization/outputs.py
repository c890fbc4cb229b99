"""The outputs of an image: where they lie, its row of the ledger, and whether what lies there is what was asked for."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypedDict, Unpack

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

LEFT = "(what an earlier run made of it was left in its place)"
"""Stands after the reason of an image that was not looked at."""


def input_hash(image: ManifestRow) -> str | None:
    """Hash of the scan (the row's ``sha256``); where the image has a brain mask, of both. None where the scan was not hashed.

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
    """Hash of names, sizes and times of scan and brain mask, without a look into them; None where they may have been written to.

    Raises
    ------
    DataError
        If an object store does not say.
    """
    places = [image["uri"]]
    if image["mask_uri"]:
        places.append(image["mask_uri"])
    states = [(place, state_of(place)) for place in places]
    is_sure = all(state is not None for _, state in states)
    return hash_of(states) if is_sure else None


def known_hash(state: str | None, earlier_rows: Iterable[LedgerRow]) -> str | None:
    """:func:`input_hash` as an earlier run found it, if scan and mask are in the same state now; None where they are to be read.

    Parameters
    ----------
    state:
        Of now, by :func:`input_state`.
    """
    for row in earlier_rows:
        if state is not None and row["input_state"] == state:
            return row["input_sha256"]
    return None


def provenance(digest: str | None, model_hash: str, domain: TargetDomain) -> dict[str, str | None]:
    """All that decides a derivative, under the names it has in ledger and sidecar."""
    return {"input_sha256": digest, "model_hash": model_hash, "settings_hash": domain.settings_hash}


def seen(image: Path, stored: StoredDerivatives | None) -> contextlib.AbstractContextManager[None]:
    """While the block runs, what tells whether a derivative is there lies in its local folder, also of one in an object store."""
    return contextlib.nullcontext() if stored is None else stored.seen(image)


def is_current(
    earlier: LedgerRow | None,
    out: Path,
    digest: str | None,
    model_hash: str,
    domain: TargetDomain,
    stored: StoredDerivatives | None = None,
) -> bool:
    """Whether an image was done before from the same bytes by the same model and settings, and is still there whole.

    The row tells what was done, the sidecar what lies there. A run that was killed may have replaced the one and not
    the other.

    Parameters
    ----------
    stored:
        The derivatives in an object store, for which ``out`` stands.
    """
    if earlier is None or earlier["status"] not in MADE or earlier["output"] is None:
        return False
    output = out / earlier["output"]
    asked_for = provenance(digest, model_hash, domain)
    if not asked_for.items() <= earlier.items():
        return False
    with seen(output, stored):
        return os.path.isfile(output) and read_sidecar(output).get("Provenance") == asked_for


def check_places(image: Path, out: Path) -> None:
    """Raise DataError if an image's derivative, or what belongs to it, would lie outside the folder of derivatives, behind a link."""
    for path in derivative_files(image):
        check_place(path, out)


def mark_shared_outputs(
    images: Sequence[ManifestRow], domains: Sequence[TargetDomain], settings: HarmonizeConfig
) -> None:
    """Mark, in place, every usable image whose derivative would have the path of an earlier image's, or one that is too long.

    On the template's grid that is one that differs from another in `space` alone.
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
        received = f"its output would have the name of that of {owner_of_path[path]}"
        raise DataError(received, "a name of its own", "Rename one of them, or leave both on their own grid.")


def remove_stale(
    row: LedgerRow,
    domain: TargetDomain,
    out: Path,
    settings: HarmonizeConfig,
    stored: StoredDerivatives | None = None,
) -> LedgerRow:
    """Remove what an earlier run made of an image that failed or was refused now, so that nobody takes it for the answer.

    Where the scan itself was not looked at now (no ``input_sha256``) that stays: nothing says that it is wrong.

    Parameters
    ----------
    stored:
        The derivatives in an object store, for which ``out`` stands.

    Returns
    -------
    The row; where something of the scan's own stays, ``output`` and ``reason`` say so.
    """
    source = row["source"] or ""
    try:
        entities = parse(source)
        output = out / domain.output(source, settings)
    except DataError:
        return row  # of such a name nothing was ever made
    if row["image_id"] != domain.ledger_id(entities.image_id):
        return row  # a second file of an image: the derivative is that of the first
    if row["input_sha256"] is None:
        with seen(output, stored):
            sources = read_sidecar(output).get("Sources")
        is_of_this_scan = isinstance(sources, list) and bids_uri(source, source) in sources
        if not is_of_this_scan:
            return row
        left = row.copy()
        left["output"] = output.relative_to(out).as_posix()
        left["reason"] = f"{row['reason']} {LEFT}"
        return left
    try:
        check_places(output, out)
        for path in derivative_files(output):
            path.unlink(missing_ok=True)
        if stored is not None:
            stored.remove(output)
    except (DataError, OSError) as error:
        log.warning("%s: what an earlier run made of it is out of date, and cannot be removed (%s)", output, error)
    return row


class Outcome(TypedDict, total=False):
    """What a row of the ledger may hold beyond the image, the domain and the status."""

    output: str
    input_sha256: str | None
    flags: list[str] | None


def ledger_row(
    image: ManifestRow,
    domain: TargetDomain,
    status: Status,
    problem: Problem | None = None,
    **outcome: Unpack[Outcome],
) -> LedgerRow:
    """Row of the ledger for one domain of an image of the archive; worker and driver add what is the same for all domains."""
    return {
        "image_id": domain.ledger_id(image["image_id"]),
        "target": domain.name,
        "site": image["site"],
        "sequence": image["sequence"],
        "source": image["uri"],
        "output": outcome.get("output"),
        "status": status,
        "reason": problem and problem.reason,
        "expected": problem and problem.expected,
        "remedy": problem and problem.remedy,
        "flags": outcome.get("flags"),
        "seconds": 0.0,
        "finished": utc_now().isoformat(),
        "input_sha256": outcome.get("input_sha256"),
        "input_state": None,
        "model_hash": None,
        "settings_hash": domain.settings_hash,
    }
