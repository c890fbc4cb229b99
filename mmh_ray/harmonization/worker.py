"""The actor of the batch job: loads the model once, then takes image after image; an exception belongs to its row."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmh_ray.bids.contrast import contrast_flags
from mmh_ray.bids.derivatives import derivative_files, figure_paths, write_sidecar
from mmh_ray.config import Config
from mmh_ray.errors import DataError, RefusedError, data_error, naming_mask
from mmh_ray.harmonization.harmonizer import HarmonizedScan, Harmonizer, InferredImage, ReadyScan, with_smaller_batches
from mmh_ray.harmonization.sidecar import account_of
from mmh_ray.harmonization.target_domain import (
    Look,
    check_places,
    input_hash,
    is_current,
    ledger_row,
    provenance,
    unknown_sequence,
)
from mmh_ray.imaging.volume import Room, read_mask, read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.models.target.bundle import Target
from mmh_ray.provenance import sha256_file
from mmh_ray.quality.mosaic import write_mosaic

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
        ``model`` (URI) and ``model_hash`` of the run.
    looks:
        What every image is to look like; all of them share the global pass.
    neighbours:
        Workers on this machine, with this one: they share its memory.

    Attributes
    ----------
    model_idle_s:
        Seconds that the model had nothing to do between two images.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        config: Config,
        out: str,
        facts: Row,
        looks: Sequence[Look],
        neighbours: int = 1,
    ) -> None:
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
        self.model_idle_s = 0.0
        self._idle_since: float | None = None  # its start is no wait
        self._model_lock, self._device, self._room = threading.Lock(), _device_of(bundle.model), Room(neighbours)

    def harmonize(self, row: Row) -> list[Row]:
        """The ledger rows of one image, one a look, whose derivatives and sidecars are then on disk; an exception belongs to its rows."""
        start, rows = time.perf_counter(), list[Row]()
        digest: str | None = None
        status, reason = "failed", row["reason"]
        try:
            if row["status"] == "ok":
                row = row | {"sha256": sha256_file(row["uri"])}
                digest = input_hash(row)
                self._harmonize(row, digest, rows)
        except RefusedError as error:
            status, reason = "refused", str(error)
        except Exception as error:
            log.debug("%s", row["uri"], exc_info=True)
            reason = str(data_error(error, row["uri"]))
        have = {found["target"] for found in rows}
        rest = [look for look in self.looks if look.name not in have]
        rows += [ledger_row(row, look, status, reason, input_sha256=digest) for look in rest]
        seconds = (time.perf_counter() - start) / len(rows)
        return [found | {"seconds": seconds} for found in rows]

    def _harmonize(self, row: Row, digest: str, rows: list[Row]) -> None:
        """Append a row for every look as it is finished."""
        pending = self._pending(row, digest, rows)
        if not pending:
            return
        with self._room.taken_by(row["uri"]):
            ready = self._ready(row, digest)
            with self._model_lock:
                if self._idle_since is not None:
                    self.model_idle_s += time.perf_counter() - self._idle_since
                images = self._with_less_memory(ready, row["image_id"], [look.target for look, _ in pending])
                self._idle_since = time.perf_counter()
            for (look, facts), image in zip(pending, images, strict=True):
                scan, target = self.harmonizer.finish(ready, image), self.out / facts["output"]
                with _all_or_none(*derivative_files(target)) as written:
                    write_volume(scan.volume, target)
                    written.append(target)
                    for path, shown in zip(figure_paths(target), (scan.source, scan.harmonized), strict=True):
                        write_mosaic(path, shown.data, scan.prepared.brain, shown.affine)
                        written.append(path)
                    write_sidecar(target, self._sidecar(row, scan, digest, look))
                rows.append(ledger_row(row, look, "done", None, **facts, flags=_flags(row, scan)))

    def _pending(self, row: Row, digest: str, rows: list[Row]) -> list[tuple[Look, Row]]:
        """The looks that are to be made, with what their ledger rows hold; a row is appended for every other."""
        pending = []
        for look in self.looks:
            reason = unknown_sequence(row, self.harmonizer.bundle.config.model.sequences, look)
            facts = {"output": str(look.output(row, self.harmonizer.settings)), "input_sha256": digest}
            check_places(self.out / facts["output"], self.out)
            if reason:
                rows.append(ledger_row(row, look, "refused", reason, input_sha256=digest))
            elif is_current(row["earlier"].get(look.name), self.out, digest, self.facts["model_hash"], look):
                rows.append(ledger_row(row, look, "skipped", None, **facts, flags=row["earlier"][look.name]["flags"]))
            else:
                pending.append((look, facts))
        return pending

    def _ready(self, row: Row, digest: str) -> ReadyScan:
        """Read and prepare, on the CPU. A file that was replaced after it was hashed fails: its row would name other bytes."""
        volume = read_volume(row["uri"])
        mask = read_mask(row["mask_uri"]) if row["mask_uri"] else None
        if input_hash(row | {"sha256": sha256_file(row["uri"])}) != digest:
            what = "a scan or brain mask that was written to while it was read"
            raise DataError(f"{row['uri']}: {what}", "files that stay as they are", "Run again with --retry-failed.")
        with naming_mask(row["mask_uri"]):
            return self.harmonizer.ready(volume, row["sequence"], mask)

    def _with_less_memory(
        self, ready: ReadyScan, image_id: str, targets: Sequence[Target | None]
    ) -> list[InferredImage]:
        """Infer; where memory runs out, with half the batch, again and again, then on the CPU.

        Later images keep the smaller batch, and go back to the GPU where it has room for the model again.
        """
        harmonizer, model = self.harmonizer, self.harmonizer.bundle.model
        self._move_back()
        while True:
            try:
                return harmonizer.infer(ready, targets)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if harmonizer.settings.batch_slabs > 1:
                    harmonizer.settings = with_smaller_batches(harmonizer.settings)
                elif _device_of(model).type != "cpu":
                    model.to("cpu")
                else:
                    raise MemoryError(f"not even one slab at a time fits on the CPU: {error}") from error
            torch.cuda.empty_cache()
            slabs, device = harmonizer.settings.batch_slabs, _device_of(model)
            log.warning("%s: out of memory; from now on %d slabs a batch, this image on %s", image_id, slabs, device)

    def _move_back(self) -> None:
        """The model to its own device, if an image before sent it to the CPU; where there is no room yet it stays whole on the CPU."""
        model = self.harmonizer.bundle.model
        if _device_of(model) == self._device:
            return
        try:
            model.to(self._device)
        except (RuntimeError, MemoryError) as error:
            model.to("cpu")
            log.warning("the model stays on the CPU: %s", error)

    def _sidecar(self, row: Row, scan: HarmonizedScan, digest: str, look: Look) -> Row:
        """What was done to the image, for whoever finds it."""
        bundle = self.harmonizer.bundle
        seen = bundle.facts["training"].get("counts", {}).get(row["site"], {})
        return {
            "Sources": [row["uri"]],
            "SourceSHA256": row["sha256"],
            "BrainMask": row["mask_uri"],
            "Provenance": provenance(digest, self.facts["model_hash"], look),
            "Model": {"URI": self.facts["model"], "Hash": bundle.hash, "CodeVersion": bundle.facts["code_version"]},
            "TargetSite": look.name,
            "TargetModel": look.target and {"URI": look.target.uri, "Hash": look.target.hash, **look.target.facts},
            "SourceSite": row["site"],
            "SourceSiteSeenInTraining": row["sequence"] in seen,
            "Flags": _flags(row, scan),
            **account_of(scan, self.harmonizer, look.target is not None),
        }


@contextlib.contextmanager
def _all_or_none(*paths: Path) -> Iterator[list[Path]]:
    """An image without its sidecar is no result: an earlier one's files go first, what an exception leaves incomplete goes too.

    The block lists what it has written; whatever else lies there by then is another run's.
    """
    for path in paths:
        path.unlink(missing_ok=True)
    written: list[Path] = []
    try:
        yield written
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _flags(row: Row, scan: HarmonizedScan) -> list[str]:
    """What a person should look at: what the image's name tells, then what its figures do."""
    return [*contrast_flags(row["uri"]), *scan.flags]


def _device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no room; torch has no class of its own for the latter."""
    known = "DefaultCPUAllocator", "not enough memory"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in known)
