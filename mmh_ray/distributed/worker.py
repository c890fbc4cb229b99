"""The actor of the batch job: loads the model once, then takes image after image; an exception belongs to its row."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from mmh_ray.bids.derivatives import figure_paths, sidecar_path, write_sidecar
from mmh_ray.bids.entities import desc_of, output_path, parse
from mmh_ray.bids.status import utc_now
from mmh_ray.config import Config, HarmonizeConfig, to_dict
from mmh_ray.errors import MMHError, RefusedError
from mmh_ray.evaluation.curves import histogram
from mmh_ray.evaluation.mosaic import write_mosaic
from mmh_ray.harmonizer import HarmonizedScan, Harmonizer, InferredImage, ReadyScan, with_smaller_batches
from mmh_ray.imaging.template import SPACE
from mmh_ray.imaging.volume import check_memory, read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.models.target_bundle import Target
from mmh_ray.provenance import code_version, sha256_file

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
        Over every setting that decides a voxel, and the target.
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


class HarmonizeWorker:
    """Harmonizes images of an archive.

    Several threads may call it: while one has the model, others read, prepare and write; every image is one thread's from end to end.

    Parameters
    ----------
    files:
        The model bundle's files, name to content.
    config:
        Its sections `harmonize` and `quality`, and of `prepare` what is the job's to choose.
    out:
        Folder of the derivatives.
    facts:
        ``model`` (URI) and ``model_hash`` of the run.
    looks:
        What every image is to look like; all of them share the global pass.
    """

    def __init__(self, files: dict[str, bytes], config: Config, out: str, facts: Row, looks: Sequence[Look]) -> None:
        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            bundle = load_bundle(folder, device)
        for look in looks:
            if look.target is not None:
                look.target.attach(bundle)
        self.harmonizer = Harmonizer(bundle, config.harmonize, config.prepare, config.quality)
        self.out, self.facts, self.looks = Path(out), facts, looks
        self._model_lock = threading.Lock()

    def harmonize(self, row: Row) -> list[Row]:
        """The ledger rows of one image, one a look, whose derivatives and sidecars are then on disk; an exception belongs to its rows."""
        start, rows = time.perf_counter(), list[Row]()
        try:
            self._harmonize(row, rows)
        except RefusedError as error:
            rows += self._rest(row, rows, "refused", str(error))
        except MMHError as error:
            rows += self._rest(row, rows, "failed", str(error))
        except Exception as error:
            log.debug("%s", row["uri"], exc_info=True)
            rows += self._rest(row, rows, "failed", f"{row['uri']}: {type(error).__name__}: {error}")
        seconds = (time.perf_counter() - start) / len(rows)
        return [found | {"seconds": seconds} for found in rows]

    def _rest(self, row: Row, known: Sequence[Row], status: str, reason: str | None) -> list[Row]:
        """Rows of one status for the looks that have none yet."""
        have = {found["target"] for found in known}
        return [ledger_row(row, look, status, reason) for look in self.looks if look.name not in have]

    def _harmonize(self, row: Row, rows: list[Row]) -> None:
        """Append a row for every look as it is finished."""
        if row["status"] != "ok":
            rows += self._rest(row, rows, "failed", row["reason"])
            return
        pending = self._pending(row, sha256_file(row["uri"]), rows)
        if not pending:
            return
        ready = self._ready(row)
        with self._model_lock:
            images = self._with_less_memory(ready, row["image_id"], [look.target for look, _ in pending])
        for (look, facts), image in zip(pending, images, strict=True):
            scan, target = self.harmonizer.finish(ready, image), self.out / facts["output"]
            with _all_or_none(target, *figure_paths(target)):
                write_volume(scan.volume, target)
                for path, shown in zip(figure_paths(target), (scan.source, scan.harmonized), strict=True):
                    write_mosaic(path, shown.data, scan.prepared.brain, shown.affine)
                write_sidecar(target, self._sidecar(row, scan, facts["input_sha256"], look))
            rows.append(ledger_row(row, look, "done", None, **facts, flags=list(scan.flags)))

    def _pending(self, row: Row, digest: str, rows: list[Row]) -> list[tuple[Look, Row]]:
        """The looks that are to be made, with what their ledger rows hold; a row is appended for every other."""
        pending = []
        for look in self.looks:
            reason = unknown_sequence(row, self.harmonizer.bundle.config.model.sequences, look)
            facts = {"output": str(look.output(row, self.harmonizer.settings)), "input_sha256": digest}
            if reason:
                rows.append(ledger_row(row, look, "refused", reason))
            elif is_current(row["earlier"].get(look.name), self.out, digest, self.facts["model_hash"], look):
                rows.append(ledger_row(row, look, "skipped", None, **facts, flags=row["earlier"][look.name]["flags"]))
            else:
                pending.append((look, facts))
        return pending

    def _ready(self, row: Row) -> ReadyScan:
        """Read and prepare, on the CPU."""
        check_memory(row["uri"])
        volume = read_volume(row["uri"])
        mask = read_volume(row["mask_uri"]).data > 0.5 if row["mask_uri"] else None
        return self.harmonizer.ready(volume, row["sequence"], mask)

    def _with_less_memory(
        self, ready: ReadyScan, image_id: str, targets: Sequence[Target | None]
    ) -> list[InferredImage]:
        """Infer; where memory runs out, with half the batch, again and again, then on the CPU. Later images keep the smaller batch."""
        harmonizer, model = self.harmonizer, self.harmonizer.bundle.model
        device = next(model.parameters()).device
        try:
            while True:
                try:
                    return harmonizer.infer(ready, targets)
                except torch.OutOfMemoryError as error:
                    torch.cuda.empty_cache()
                    if harmonizer.settings.batch_slabs > 1:
                        harmonizer.settings = with_smaller_batches(harmonizer.settings)
                    elif next(model.parameters()).device != torch.device("cpu"):
                        model.to("cpu")
                    else:
                        raise MemoryError(f"not even one slab at a time fits on the CPU: {error}") from error
                    log.warning("%s: out of memory, %d slabs a batch", image_id, harmonizer.settings.batch_slabs)
        finally:
            model.to(device)

    def _sidecar(self, row: Row, scan: HarmonizedScan, digest: str, look: Look) -> Row:
        """What was done to the image, for whoever finds it."""
        scaling, bundle, settings = scan.prepared.scaling, self.harmonizer.bundle, self.harmonizer.settings
        return {
            "Sources": [row["uri"]],
            "SourceSHA256": digest,
            "Model": {"URI": self.facts["model"], "Hash": bundle.hash, "CodeVersion": bundle.facts["code_version"]},
            "TargetSite": look.name,
            "TargetModel": look.target and {"URI": look.target.uri, "Hash": look.target.hash, **look.target.facts},
            "SkullStripped": scan.stripped,
            "Units": _UNITS[settings.intensity, look.target is not None],
            "SourceSite": row["site"],
            "SourceSiteSeenInTraining": row["site"] in bundle.facts["training"].get("counts", {}),
            "Preparation": list(scan.prepared.steps),
            "IntensityMapping": {
                "Low": scaling.low,
                "High": scaling.high,
                "Formula": "unit = (scan - Low) / (High - Low)",
            },
            "Registration": _registration(scan),
            "Settings": to_dict(settings) | {"prepare": to_dict(self.harmonizer.prepare)},
            "QC": scan.quality,
            "Flags": list(scan.flags),
            "BrainHistogram": {
                "Before": histogram(scan.source.data[scan.prepared.brain]),
                "After": histogram(scan.harmonized.data[scan.prepared.brain]),
            },
            "GeneratedBy": {"Name": "mmh_ray", "Version": code_version()},
        }


@contextlib.contextmanager
def _all_or_none(*paths: Path) -> Iterator[None]:
    """An image without its sidecar is no result: what an exception leaves incomplete is removed."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


_UNITS = {
    ("unit", False): "unit intensity of the unified domain (0 background, about 1 bright tissue)",
    ("source", False): "the scan's own: unit intensity of the unified domain * (High - Low) + Low",
    ("unit", True): "unit intensity of the target site (0 background, 1 bright tissue of its scans)",
    (
        "source",
        True,
    ): "the scan's own range, in the target's contrast: unit intensity of the target site * (High - Low) + Low",
}
"""By ``harmonize.intensity``, and whether there is a target. What a target's scans measure in their own units is not recorded."""


def _registration(scan: HarmonizedScan) -> Row | None:
    """How the template lies in the scan, by which everything can be undone."""
    found = scan.prepared.registration
    if found is None:
        return None
    return {
        "Method": found.method,
        "Quality": found.quality,
        "TemplateSpace": SPACE,
        "TemplateToScan": found.matrix.tolist(),
    }


def template_space(settings: HarmonizeConfig) -> str | None:
    """Label of the template's space where the images are to lie in it."""
    return SPACE if settings.space == "template" else None


def unknown_sequence(row: Row, known: tuple[str, ...], look: Look) -> str | None:
    """Why the model, or the look's target, cannot take an image of this BIDS suffix."""
    if row["sequence"] not in known:
        return f"sequence {row['sequence']}; this model harmonizes {', '.join(known)}"
    if look.target is not None and row["sequence"] not in look.target.styles:
        return f"sequence {row['sequence']}; target {look.name} knows {', '.join(look.target.styles)}"
    return None


def is_current(earlier: Row | None, out: Path, digest: str, model_hash: str, look: Look) -> bool:
    """Whether an image was done before from the same bytes by the same model and settings, and is still there whole."""
    if earlier is None or earlier["status"] not in ("done", "skipped"):
        return False
    target = out / earlier["output"]
    if not (target.is_file() and sidecar_path(target).is_file()):
        return False
    wanted = {"input_sha256": digest, "model_hash": model_hash, "settings_hash": look.settings_hash}
    return all(earlier[key] == value for key, value in wanted.items())


def ledger_row(row: Row, look: Look, status: str, reason: str | None, **more: Any) -> Row:
    """Row of the ledger for one look of an image of the archive; the model's hash is added by the driver."""
    fixed = {"image_id": look.image_id(row), "target": look.name, "site": row["site"], "sequence": row["sequence"]}
    outcome = {"source": row["uri"], "status": status, "reason": reason, "seconds": 0.0}
    return fixed | outcome | {"settings_hash": look.settings_hash, "finished": utc_now().isoformat()} | more
