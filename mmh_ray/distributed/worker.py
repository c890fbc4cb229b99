"""The actor of the batch job: loads the model once, then takes image after image; an exception belongs to its row."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmh_ray.bids.derivatives import figure_paths, sidecar_path, write_sidecar
from mmh_ray.bids.entities import output_path, parse
from mmh_ray.bids.status import utc_now
from mmh_ray.config import Config, HarmonizeConfig, to_dict
from mmh_ray.errors import MMHError, RefusedError
from mmh_ray.evaluation.curves import histogram
from mmh_ray.evaluation.mosaic import write_mosaic
from mmh_ray.harmonizer import HarmonizedScan, Harmonizer, ReadyScan, with_smaller_batches
from mmh_ray.imaging.template import SPACE
from mmh_ray.imaging.volume import check_memory, read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.provenance import code_version, sha256_file

log = logging.getLogger(__name__)

Row = dict[str, Any]


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
        ``model`` (URI), ``model_hash`` and ``settings_hash`` of the run.
    """

    def __init__(self, files: dict[str, bytes], config: Config, out: str, facts: Row) -> None:
        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            bundle = load_bundle(folder, device)
        self.harmonizer = Harmonizer(bundle, config.harmonize, config.prepare, config.quality)
        self.out, self.facts = Path(out), facts
        self._model_lock = threading.Lock()

    def harmonize(self, row: Row) -> Row:
        """The ledger row of one image, whose derivative and sidecar are then on disk; an exception belongs to its row."""
        start = time.perf_counter()
        try:
            outcome = self._harmonize(row)
        except RefusedError as error:
            outcome = ledger_row(row, "refused", str(error))
        except MMHError as error:
            outcome = ledger_row(row, "failed", str(error))
        except Exception as error:
            log.debug("%s", row["uri"], exc_info=True)
            outcome = ledger_row(row, "failed", f"{row['uri']}: {type(error).__name__}: {error}")
        return outcome | {"seconds": time.perf_counter() - start}

    def _harmonize(self, row: Row) -> Row:
        if row["status"] != "ok":
            return ledger_row(row, "failed", row["reason"])
        reason = unknown_sequence(row, self.harmonizer.bundle.config.model.sequences)
        if reason:
            return ledger_row(row, "refused", reason)
        relative = output_path(parse(row["uri"]), template_space(self.harmonizer.settings))
        target, digest = self.out / relative, sha256_file(row["uri"])
        facts = {"output": str(relative), "input_sha256": digest}
        if is_current(row["earlier"], target, digest, self.facts):
            return ledger_row(row, "skipped", None, **facts, flags=row["earlier"]["flags"])
        ready = self._ready(row)
        with self._model_lock:
            planes = self._with_less_memory(ready, row["image_id"])
        scan = self.harmonizer.finish(ready, planes)
        write_volume(scan.volume, target)
        for path, image in zip(figure_paths(target), (scan.source, scan.harmonized), strict=True):
            write_mosaic(path, image.data, scan.prepared.brain, image.affine)
        write_sidecar(target, self._sidecar(row, scan, digest))
        return ledger_row(row, "done", None, **facts, flags=list(scan.flags))

    def _ready(self, row: Row) -> ReadyScan:
        """Read and prepare, on the CPU."""
        check_memory(row["uri"])
        volume = read_volume(row["uri"])
        mask = read_volume(row["mask_uri"]).data > 0.5 if row["mask_uri"] else None
        return self.harmonizer.ready(volume, row["sequence"], mask)

    def _with_less_memory(self, ready: ReadyScan, image_id: str) -> np.ndarray:
        """Infer; where memory runs out, with half the batch, again and again, then on the CPU. Later images keep the smaller batch."""
        harmonizer, model = self.harmonizer, self.harmonizer.bundle.model
        device = next(model.parameters()).device
        try:
            while True:
                try:
                    return harmonizer.infer(ready)
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

    def _sidecar(self, row: Row, scan: HarmonizedScan, digest: str) -> Row:
        """What was done to the image, for whoever finds it."""
        scaling, bundle, settings = scan.prepared.scaling, self.harmonizer.bundle, self.harmonizer.settings
        return {
            "Sources": [row["uri"]],
            "SourceSHA256": digest,
            "Model": {"URI": self.facts["model"], "Hash": bundle.hash, "CodeVersion": bundle.facts["code_version"]},
            "TargetSite": None,
            "SkullStripped": scan.stripped,
            "Units": _UNITS[settings.intensity],
            "SourceSite": row["site"],
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


_UNITS = {
    "unit": "unit intensity of the unified domain (0 background, about 1 bright tissue)",
    "source": "the scan's own: unit intensity of the unified domain * (High - Low) + Low",
}


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


def unknown_sequence(row: Row, known: tuple[str, ...]) -> str | None:
    """Why the model cannot take an image of this BIDS suffix."""
    if row["sequence"] in known:
        return None
    return f"sequence {row['sequence']}; this model harmonizes {', '.join(known)}"


def is_current(earlier: Row | None, target: Path, digest: str, facts: Row) -> bool:
    """Whether an image was done before from the same bytes by the same model and settings, and is still there whole."""
    if earlier is None or earlier["status"] not in ("done", "skipped"):
        return False
    if not (target.is_file() and sidecar_path(target).is_file()):
        return False
    wanted = {"input_sha256": digest, "model_hash": facts["model_hash"], "settings_hash": facts["settings_hash"]}
    return all(earlier[key] == value for key, value in wanted.items())


def ledger_row(row: Row, status: str, reason: str | None, **more: Any) -> Row:
    """Row of the ledger for an image of the archive; hashes of model and settings are added by the driver."""
    fixed = {key: row[key] for key in ("image_id", "site", "sequence")}
    outcome = {"source": row["uri"], "status": status, "reason": reason, "seconds": 0.0}
    return fixed | outcome | {"finished": utc_now().isoformat()} | more
