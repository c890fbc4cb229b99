"""What an image is to look like, its row of the ledger, and whether what lies in the folder is that."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmh_ray.bids.derivatives import derivative_files, read_sidecar
from mmh_ray.bids.entities import UNIFIED, desc_of, output_path, parse
from mmh_ray.bids.ledger import MADE
from mmh_ray.bids.status import utc_now
from mmh_ray.config import HarmonizeConfig
from mmh_ray.errors import ConfigError, DataError, RefusedError
from mmh_ray.imaging.template import SPACE
from mmh_ray.models.target.bundle import Target
from mmh_ray.provenance import check_place, hash_of, sha256_file

log = logging.getLogger(__name__)

Row = dict[str, Any]

LEFT = "(what an earlier run made of it was left in its place)"
"""Stands after the reason of an image that was not looked at."""


@dataclass(frozen=True)
class Look:
    """What an image is to look like: the unified domain, or a target.

    Attributes
    ----------
    target:
        None for the unified domain.
    settings_hash:
        Over every setting that decides a voxel or the outcome, and the target.
    """

    target: Target | None
    settings_hash: str

    @property
    def name(self) -> str | None:
        """The target's name."""
        return self.target.site if self.target else None

    def image_id(self, row: Row) -> str:
        """Key of the image's row in the ledger."""
        return f"{row['image_id']}@{self.name}" if self.target else row["image_id"]

    def output(self, row: Row, settings: HarmonizeConfig) -> PurePosixPath:
        """Path of the derivative, relative to the derivatives' root."""
        return output_path(parse(row["uri"]), template_space(settings), desc_of(self.name))


def template_space(settings: HarmonizeConfig) -> str | None:
    """Label of the template's space where the images are to lie in it."""
    return SPACE if settings.space == "template" else None


def unknown_sequence(row: Row, known: tuple[str, ...], look: Look) -> str | None:
    """Why the model, or the look's target, cannot take an image of this BIDS suffix."""
    if row["sequence"] not in known:
        return _unknown(row["sequence"], f"one that this model harmonizes: {', '.join(known)}")
    if look.target is not None and row["sequence"] not in look.target.styles:
        return _unknown(row["sequence"], f"one that target {look.name} knows: {', '.join(look.target.styles)}")
    return None


def _unknown(sequence: str, expected: str) -> str:
    return str(RefusedError(f"sequence {sequence}", expected, "Leave it out by --sequence, or train a model on it."))


def input_hash(row: Row) -> str:
    """What an image is made of: the row's own ``sha256``, of the scan; where a brain mask is given, the hash of both.

    Raises
    ------
    OSError
        If the mask cannot be read.
    """
    return hash_of([row["sha256"], sha256_file(row["mask_uri"])]) if row["mask_uri"] else row["sha256"]


def provenance(digest: str | None, model_hash: str, look: Look) -> dict[str, str | None]:
    """All that decides a derivative, under the names it has in ledger and sidecar."""
    return {"input_sha256": digest, "model_hash": model_hash, "settings_hash": look.settings_hash}


def is_current(earlier: Row | None, out: Path, digest: str, model_hash: str, look: Look) -> bool:
    """Whether an image was done before from the same bytes by the same model and settings, and that very image is still there whole.

    The row tells what was done, the sidecar what lies there: a run that was killed may have replaced the one and not the other.
    """
    if earlier is None or earlier["status"] not in MADE or earlier["output"] is None:
        return False
    wanted, target = provenance(digest, model_hash, look), out / earlier["output"]
    return (
        os.path.isfile(target)
        and wanted.items() <= earlier.items()
        and read_sidecar(target).get("Provenance") == wanted
    )


def check_places(image: Path, out: Path) -> None:
    """Raise DataError if an image's derivative, or what belongs to it, would lie outside the folder of derivatives, behind a link."""
    for path in derivative_files(image):
        check_place(path, out)


def mark_shared_outputs(rows: list[Row], looks: Sequence[Look], settings: HarmonizeConfig) -> None:
    """Fail, in place, every usable image whose derivative would have the path of an earlier image's, or one that is too long.

    On the template's grid that is one that differs from another in `space` alone.
    """
    taken: dict[PurePosixPath, Any] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        try:
            outputs = [look.output(row, settings) for look in looks]
            _check_free(outputs, taken)
        except DataError as error:
            row |= {"status": "unusable", "reason": str(error)}
        else:
            taken |= dict.fromkeys(outputs, row["image_id"])


def _check_free(outputs: Sequence[PurePosixPath], taken: Mapping[PurePosixPath, Any]) -> None:
    first = next((taken[path] for path in outputs if path in taken), None)
    if first:
        received = f"its output would have the name of that of {first}"
        raise DataError(received, "a name of its own", "Rename one of them, or leave both on their own grid.")


def check_names(tasks: Sequence[Row], looks: Sequence[Look], known: Iterable[Row], settings: HarmonizeConfig) -> None:
    """Refuse targets whose derivatives would have the names of another's, of this run or of an earlier one into the folder.

    Names that differ in capitals alone are one to many a file system.

    Parameters
    ----------
    tasks:
        Rows of the images to look at.
    known:
        Rows of the ledger.

    Raises
    ------
    ConfigError
        Names both targets; or the one whose name leaves no label.
    """
    names: dict[str, str | None] = {}
    for look in looks:
        label = desc_of(look.name).lower()
        if label in names:
            raise _one_name(look.name, names[label], "asked for beside it")
        names[label] = look.name
    made = [row for row in known if row["output"]]
    for row in made:
        label = _label(row["target"])
        if names.get(label, row["target"]) != row["target"]:
            raise _one_name(names[label], row["target"], f"which made {row['output']} in this folder")
    owners = {row["output"]: row["target"] for row in made}
    for task in tasks:
        for look in looks if task["status"] == "ok" else ():
            output = str(look.output(task, settings))
            if owners.get(output, look.name) != look.name:
                raise _one_name(look.name, owners[output], f"which made {output} in this folder")


def _label(target: str | None) -> str:
    """What tells a target's images from others, in small letters; of a name that no longer is one, that of the unified domain."""
    try:
        return desc_of(target).lower()
    except ConfigError:
        return UNIFIED


def _one_name(target: str | None, other: str | None, which: str) -> ConfigError:
    received = f"{_called(target)}, whose images would have the names of those of {_called(other)}, {which}"
    remedy = "Harmonize into another folder, or train one of them under another name."
    return ConfigError(received, "targets whose letters and digits differ", remedy)


def _called(target: str | None) -> str:
    return "the unified domain" if target is None else f"target {target!r}"


def remove_stale(found: Row, look: Look, out: Path, settings: HarmonizeConfig) -> Row:
    """Remove what an earlier run made of an image that failed or was refused now, so that nobody takes it for the answer.

    Where the scan itself was not looked at now (no ``input_sha256``) that stays: nothing says that it is wrong.

    Returns
    -------
    The row; where something of the scan's own stays, ``output`` and ``reason`` say so.
    """
    try:
        entities = parse(found["source"])
        target = out / look.output({"uri": found["source"]}, settings)
    except DataError:
        return found  # of such a name nothing was ever made
    if found["image_id"] != look.image_id({"image_id": entities.image_id}):
        return found  # a second file of an image: the derivative is that of the first
    if found["input_sha256"] is None:
        own = read_sidecar(target).get("Sources") == [found["source"]]
        left = {"output": target.relative_to(out).as_posix(), "reason": f"{found['reason']} {LEFT}"}
        return found | left if own else found
    try:
        check_places(target, out)
        for path in derivative_files(target):
            path.unlink(missing_ok=True)
    except (DataError, OSError) as error:
        log.warning("%s: what an earlier run made of it is out of date, and cannot be removed (%s)", target, error)
    return found


def ledger_row(row: Row, look: Look, status: str, reason: str | None, **more: Any) -> Row:
    """Row of the ledger for one look of an image of the archive; the model's hash is added by the driver."""
    fixed = {"image_id": look.image_id(row), "target": look.name, "site": row["site"], "sequence": row["sequence"]}
    outcome = {"source": row["uri"], "status": status, "reason": reason, "seconds": 0.0, "input_sha256": None}
    return fixed | outcome | {"settings_hash": look.settings_hash, "finished": utc_now().isoformat()} | more
