"""What an image is to look like, its row of the ledger, and whether what lies in the folder is that."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmh_ray.bids.derivatives import derivative_files, read_sidecar
from mmh_ray.bids.entities import desc_of, output_path, parse
from mmh_ray.bids.status import utc_now
from mmh_ray.config import HarmonizeConfig
from mmh_ray.errors import DataError, RefusedError
from mmh_ray.imaging.template import SPACE
from mmh_ray.models.target_bundle import Target
from mmh_ray.provenance import hash_of, sha256_file

log = logging.getLogger(__name__)

Row = dict[str, Any]


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
    if earlier is None or earlier["status"] not in ("done", "skipped"):
        return False
    wanted, target = provenance(digest, model_hash, look), out / earlier["output"]
    return target.is_file() and wanted.items() <= earlier.items() and read_sidecar(target).get("Provenance") == wanted


def remove_stale(found: Row, look: Look, out: Path, settings: HarmonizeConfig, model_hash: str) -> None:
    """Remove what an earlier run made of an image that failed or was refused now, so that nobody takes it for the answer.

    It stays where the scan could not be looked at now, and this model and these settings made it.
    """
    try:
        entities = parse(found["source"])
        target = out / look.output({"uri": found["source"]}, settings)
    except DataError:
        return  # of such a name nothing was ever made
    if found["image_id"] != look.image_id({"image_id": entities.image_id}):
        return  # a second file of an image: the derivative is that of the first
    made = read_sidecar(target).get("Provenance") or {}
    wanted = provenance(found["input_sha256"], model_hash, look)
    if found["input_sha256"] is None and made == wanted | {"input_sha256": made.get("input_sha256")}:
        return
    for path in derivative_files(target):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: out of date, and cannot be removed (%s)", path, error)


def ledger_row(row: Row, look: Look, status: str, reason: str | None, **more: Any) -> Row:
    """Row of the ledger for one look of an image of the archive; the model's hash is added by the driver."""
    fixed = {"image_id": look.image_id(row), "target": look.name, "site": row["site"], "sequence": row["sequence"]}
    outcome = {"source": row["uri"], "status": status, "reason": reason, "seconds": 0.0, "input_sha256": None}
    return fixed | outcome | {"settings_hash": look.settings_hash, "finished": utc_now().isoformat()} | more
