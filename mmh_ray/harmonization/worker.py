"""The worker of the batch job: loads the model once, then harmonizes image after image; errors become ledger rows."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmh_ray.bids.contrast import contrast_flags
from mmh_ray.bids.derivatives import bids_uri, derivative_files, figure_paths, write_sidecar
from mmh_ray.bids.output_folder import OutputFolder, StoredOutputFolder
from mmh_ray.bids.rows import LedgerRow, Problem, Status, problem_of
from mmh_ray.config import Config
from mmh_ray.errors import DataError, RefusedError, data_error, naming_mask
from mmh_ray.harmonization.fallback import FallbackInference
from mmh_ray.harmonization.harmonizer import HarmonizedScan, Harmonizer, ReadyScan
from mmh_ray.harmonization.job import ModelIdentity, Task
from mmh_ray.harmonization.outputs import (
    check_places,
    input_hash,
    input_state,
    is_current,
    known_hash,
    ledger_row,
    provenance,
)
from mmh_ray.harmonization.sidecar import account_of
from mmh_ray.harmonization.target_domain import TargetDomain, describe
from mmh_ray.imaging.template import SPACE_URI
from mmh_ray.imaging.volume import SharedMemory, read_mask, read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.object_store import Store, is_remote
from mmh_ray.provenance import sha256_file
from mmh_ray.quality.mosaic import write_mosaic
from mmh_ray.staging import naming, staged_scan

log = logging.getLogger(__name__)


class _Pending(NamedTuple):
    """A domain that an image must be harmonized to, and the path of its derivative."""

    domain: TargetDomain
    output: str
    """Relative to the root of the derivatives."""


@contextlib.contextmanager
def _outputs_in(out: str) -> Iterator[OutputFolder]:
    """Open the folder of derivatives ``out``; one in an object store gets a temporary local folder."""
    if not is_remote(out):
        yield OutputFolder(out, out)
        return
    store = Store(out)
    with tempfile.TemporaryDirectory(prefix="mmh-derivatives-") as scratch:
        folder = Path(scratch).resolve()
        with naming({str(folder): store.uri}):
            yield StoredOutputFolder(folder, store)


class _Files(NamedTuple):
    """Local paths of a scan and its brain mask, and where its derivatives are written."""

    scan: str
    mask: str | None
    outputs: OutputFolder


class HarmonizeWorker:
    """Harmonizes images of an archive.

    Several threads may call it: while one uses the model, others read, prepare and write. One thread does all the work
    on an image.

    Parameters
    ----------
    files:
        The model bundle's files, name to content.
    config:
        The sections `harmonize` and `quality` are used, and the part of `prepare` that a job may choose.
    out:
        Folder of the derivatives, or its URI in an object store.
    model:
        Identity of the model in ``files``.
    domains:
        Domains that every image is mapped to; all of them share the global pass.
    neighbours:
        Number of workers on this machine, including this one: they share its memory.

    Attributes
    ----------
    model_idle_s:
        Seconds that the model was idle between images.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        config: Config,
        out: str,
        model: ModelIdentity,
        domains: Sequence[TargetDomain],
        neighbours: int = 1,
    ) -> None:
        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            bundle = load_bundle(folder, device)
        for domain in domains:
            if domain.target is not None:
                domain.target.attach(bundle)
        self.harmonizer = Harmonizer(bundle, config.harmonize, config.prepare, config.quality)
        self.out = out
        self.model = model
        self.domains = domains
        self.model_idle_s = 0.0
        self._idle_since: float | None = None  # None until the first image, as the start does not count
        self._model_lock = threading.Lock()
        self._inference = FallbackInference(self.harmonizer)
        self._room = SharedMemory(neighbours)

    def harmonize(self, task: Task) -> list[LedgerRow]:
        """Harmonize one image to all domains, write derivatives and sidecars, and return a ledger row per domain.

        Exceptions are not raised: they become the reason of the rows that are not finished.
        """
        start = time.perf_counter()
        rows: list[LedgerRow] = []
        digest: str | None = None
        state: str | None = None
        status = Status.FAILED
        problem = problem_of(task)
        try:
            if task["status"] == Status.OK:
                with _outputs_in(self.out) as outputs:
                    state = input_state(task)
                    if not self._skip_unread(task, outputs, state, rows):
                        with staged_scan(task["uri"], task["mask_uri"]) as (scan, mask):
                            files = _Files(scan, mask, outputs)
                            task = task.copy()
                            task["sha256"] = sha256_file(scan)
                            digest = _input_hash(task, files)
                            self._harmonize(task, files, digest, rows)
        except RefusedError as error:
            status = Status.REFUSED
            problem = Problem.of(error)
        except Exception as error:
            log.debug("%s", task["uri"], exc_info=True)
            problem = Problem.of(data_error(error, task["uri"]))
        finished = {row["target"] for row in rows}
        for domain in self.domains:
            if domain.name not in finished:
                rows.append(ledger_row(task, domain, status, problem, input_sha256=digest))
        seconds = (time.perf_counter() - start) / len(rows)
        for row in rows:
            row["seconds"] = seconds
            row["input_state"] = state
        return rows

    def _skip_unread(self, task: Task, outputs: OutputFolder, state: str | None, rows: list[LedgerRow]) -> bool:
        """Skip an image that has not changed since an earlier run harmonized it, without reading it.

        Returns whether it was skipped; if so, all its rows are appended.
        """
        digest = known_hash(state, task["earlier"].values())
        if digest is None:
            return False
        skipped_rows: list[LedgerRow] = []
        if self._pending(task, outputs, digest, skipped_rows):
            return False
        rows += skipped_rows
        return True

    def _harmonize(self, task: Task, files: _Files, digest: str | None, rows: list[LedgerRow]) -> None:
        """Harmonize an image to all domains, and append a row as each is finished."""
        pending = self._pending(task, files.outputs, digest, rows)
        if not pending:
            return
        targets = [domain.target for domain, _ in pending]
        with self._room.taken_by(files.scan):
            ready = self._ready(task, files, digest)
            with self._model_lock:
                if self._idle_since is not None:
                    self.model_idle_s += time.perf_counter() - self._idle_since
                images = self._inference.infer(ready, task["image_id"], targets)
                self._idle_since = time.perf_counter()
            for (domain, output), image in zip(pending, images, strict=True):
                scan = self.harmonizer.finish(ready, image)
                image_path = files.outputs.folder / output
                stored = files.outputs.stored
                with contextlib.nullcontext() if stored is None else stored.replacing(image_path):
                    self._write(image_path, scan, self._sidecar(task, scan, digest, domain))
                flags = _flags(task, scan)
                rows.append(ledger_row(task, domain, Status.DONE, output=output, input_sha256=digest, flags=flags))

    def _pending(self, task: Task, outputs: OutputFolder, digest: str | None, rows: list[LedgerRow]) -> list[_Pending]:
        """The domains that the image must be harmonized to; a row is appended for each of the others."""
        folder = outputs.folder
        model_sequences = self.harmonizer.bundle.config.model.sequences
        pending = []
        for domain in self.domains:
            refusal = domain.unknown_sequence(task["sequence"], model_sequences)
            output = str(domain.output(task["uri"], self.harmonizer.settings))
            check_places(folder / output, folder)
            earlier = task["earlier"].get(domain.name)
            if refusal is not None:
                rows.append(ledger_row(task, domain, Status.REFUSED, Problem.of(refusal), input_sha256=digest))
            elif earlier is not None and is_current(earlier, folder, digest, self.model.hash, domain, outputs.stored):
                flags = earlier["flags"]
                rows.append(ledger_row(task, domain, Status.SKIPPED, output=output, input_sha256=digest, flags=flags))
            else:
                pending.append(_Pending(domain, output))
        return pending

    def _write(self, image_path: Path, scan: HarmonizedScan, sidecar: dict[str, Any]) -> None:
        """Write a derivative, its pictures and its sidecar, all or none."""
        before_path, after_path = figure_paths(image_path)
        brain = scan.prepared.brain
        with all_or_none(*derivative_files(image_path)) as written:
            write_volume(scan.volume, image_path)
            written.append(image_path)
            write_mosaic(before_path, scan.source.data, brain, scan.source.affine)
            written.append(before_path)
            write_mosaic(after_path, scan.harmonized.data, brain, scan.harmonized.affine)
            written.append(after_path)
            write_sidecar(image_path, sidecar)

    def _ready(self, task: Task, files: _Files, digest: str | None) -> ReadyScan:
        """Read and prepare a scan on the CPU; DataError if its files changed since they were hashed."""
        volume = read_volume(files.scan)
        mask = read_mask(files.mask) if files.mask else None
        task_now = task.copy()
        task_now["sha256"] = sha256_file(files.scan)
        if _input_hash(task_now, files) != digest:
            received = f"{task['uri']}: a scan or brain mask that was written to while it was read"
            raise DataError(received, "files that do not change", "Run again with --retry-failed.")
        sequence = task["sequence"]
        assert sequence is not None, "an image of an unknown sequence was refused before"
        with naming_mask(files.mask):
            return self.harmonizer.ready(volume, sequence, mask)

    def _sidecar(self, task: Task, scan: HarmonizedScan, digest: str | None, domain: TargetDomain) -> dict[str, Any]:
        """Content of the derivative's sidecar."""
        bundle = self.harmonizer.bundle
        target = domain.target
        target_model = None if target is None else {"URI": target.uri, "Hash": target.hash, **target.facts}
        training_counts = bundle.facts["training"].get("counts", {})
        sequences_seen = training_counts.get(task["site"], {})
        source = bids_uri(task["uri"], task["uri"])
        mask = bids_uri(task["mask_uri"], task["uri"]) if task["mask_uri"] else None
        in_template_space = self.harmonizer.settings.space == "template"
        return {
            "Description": describe(domain.name),
            "Sources": [source] if mask is None else [source, mask],
            "SourceSHA256": task["sha256"],
            "BrainMask": mask,
            "SpatialReference": SPACE_URI if in_template_space else source,
            "Provenance": provenance(digest, self.model.hash, domain),
            "Model": {"URI": self.model.uri, "Hash": bundle.hash, "CodeVersion": bundle.facts["code_version"]},
            "TargetSite": domain.name,
            "TargetModel": target_model,
            "SourceSite": task["site"],
            "SourceSiteSeenInTraining": task["sequence"] in sequences_seen,
            "Flags": _flags(task, scan),
            **account_of(scan, self.harmonizer, has_target=target is not None),
        }


def _input_hash(task: Task, files: _Files) -> str | None:
    """:func:`~mmh_ray.harmonization.outputs.input_hash`, reading the local copy of the mask."""
    here = task.copy()
    here["mask_uri"] = files.mask
    return input_hash(here)


@contextlib.contextmanager
def all_or_none(*paths: Path) -> Iterator[list[Path]]:
    """Delete old outputs first; on error delete what the block wrote, as an image without a sidecar is incomplete.

    The block lists the files that it has written: any other files may be from another run.
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


def _flags(task: Task, scan: HarmonizedScan) -> list[str]:
    """Flags from the image's name, then flags from its figures."""
    return [*contrast_flags(task["uri"]), *scan.flags]
