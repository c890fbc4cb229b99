"""The batch job: an archive in, harmonized derivatives out; one actor per slot, one volume per call, a ledger row per image."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import torch

from mmh_ray import tracking
from mmh_ray.bids.derivatives import Journal, sidecar_path, write_dataset_description, write_sidecar
from mmh_ray.bids.entities import output_path, parse
from mmh_ray.bids.manifest import find_images
from mmh_ray.config import Config, HarmonizeConfig, PrepareConfig, to_dict
from mmh_ray.distributed.cluster import connect
from mmh_ray.errors import ConfigError, MMHError
from mmh_ray.harmonizer import HarmonizedScan, Harmonizer, with_smaller_batches
from mmh_ray.imaging.template import SPACE
from mmh_ray.imaging.volume import read_volume, write_volume
from mmh_ray.models.bundle import bundle_hash, load_bundle
from mmh_ray.progress import progress
from mmh_ray.provenance import code_version, hash_of, sha256_file

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""Times an image is tried when the worker that had it died."""

Row = dict[str, Any]


def harmonize(
    bids: str, out: str, model: str, config: Config, participants: Iterable[str] = (), sequences: Iterable[str] = ()
) -> dict[str, int]:
    """Harmonize every image of a BIDS archive that the model knows; rerunning does what is missing or changed.

    Parameters
    ----------
    bids, out:
        Folders of the archive and of the derivatives.
    model:
        Bundle folder or ``models:/NAME@ALIAS``.
    participants, sequences:
        Labels without ``sub-`` and BIDS suffixes to keep; empty keeps all.

    Returns
    -------
    Number of images by status: done, skipped, failed, refused.

    Raises
    ------
    ConfigError
        If ``out`` is the archive itself or lies inside one of its subjects, or no image remains to be looked at.
    ModelError
        If the model cannot be loaded.
    """
    _check_output(bids, out)
    folder, uri = tracking.resolve_model(model, config.tracking)
    settings = config.harmonize
    rows = _select(find_images(bids, config.manifest.site_pattern, require_site=False), participants, sequences)
    connect()
    write_dataset_description(out, bids, code_version())
    chosen = to_dict(settings) | _INERT | {"prepare": _geometry(config.prepare)}
    identity = {"model_hash": bundle_hash(folder), "settings_hash": hash_of(chosen)}
    with Journal(out) as journal, progress(len(rows), "Harmonizing", "images") as advance:
        earlier = journal.rows()
        tasks = [{**row, "earlier": earlier.get(row["image_id"])} for row in rows]
        counts: Counter[str] = Counter()
        for row in _run(tasks, Path(out), folder, config, {"model": uri, **identity}):
            journal.append(row | identity)
            counts[row["status"]] += 1
            advance(1)
    return dict(counts)


_INERT = {"slots": 0, "timeout_s": 0, "batch_slabs": 0}
"""Settings that do not change a voxel, left out of the settings hash."""


def _geometry(prepare: PrepareConfig) -> Row:
    """The part of the preparation that is the job's to choose; the rest is the model's."""
    return {"crop_neck": prepare.crop_neck, "register": prepare.register, "skull": prepare.skull}


def _check_output(bids: str, out: str) -> None:
    if "://" in bids or "://" in out:
        raise ConfigError(f"{bids} -> {out}", "folders on a local or mounted disk", "Mount or copy the archive.")
    archive, target = Path(bids).resolve(), Path(out).resolve()
    inside = target.relative_to(archive).parts if target.is_relative_to(archive) else None
    if inside is not None and (not inside or inside[0] != "derivatives"):
        raise ConfigError(
            f"output {out} in archive {bids}",
            "a folder outside the archive or below its derivatives/",
            "Name another one.",
        )


def _select(rows: list[Row], participants: Iterable[str], sequences: Iterable[str]) -> list[Row]:
    subjects, suffixes = set(participants), set(sequences)
    unknown = subjects - {row["subject"] for row in rows}
    if unknown:
        raise ConfigError(f"participants {sorted(unknown)}", "subjects of the archive", "Check --participant-label.")
    kept = [
        row
        for row in rows
        if (not subjects or row["subject"] in subjects) and (not suffixes or row["sequence"] in suffixes)
    ]
    if not kept:
        raise ConfigError(
            "no image left to harmonize", "images of these participants and sequences", "Check the filters."
        )
    return kept


def _run(rows: list[Row], out: Path, folder: Path, config: Config, facts: Row) -> Iterable[Row]:
    """Ledger rows as the images finish. A worker that dies costs its image one attempt; the others go on."""
    waiting, settings = deque(rows), config.harmonize
    options, slots = _slots(settings, len(rows))
    files = ray.put({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    attempts: Counter[str] = Counter()
    busy: dict[ray.ObjectRef, tuple[Any, Row]] = {}

    def start(worker: Any) -> None:
        row = waiting.popleft()
        busy[worker.harmonize.remote(row)] = (worker, row)

    def hire() -> Any:
        return ray.remote(HarmonizeWorker).options(**options).remote(files, config, str(out), facts)

    for _ in range(slots):
        start(hire())
    while busy:
        finished, _ = ray.wait(list(busy), timeout=settings.timeout_s)
        if not finished:
            yield from _give_up(busy, waiting, settings.timeout_s)
            return
        worker, row = busy.pop(finished[0])
        try:
            yield ray.get(finished[0])
        except ray.exceptions.RayActorError as error:
            worker = hire()
            attempts[row["image_id"]] += 1
            if attempts[row["image_id"]] < ATTEMPTS:
                waiting.appendleft(row)
            else:
                yield _ledger_row(row, "failed", f"the worker died {ATTEMPTS} times on this image ({error})")
        if waiting:
            start(worker)


def _give_up(busy: dict[ray.ObjectRef, tuple[Any, Row]], waiting: Iterable[Row], seconds: float) -> Iterable[Row]:
    resources = ray.available_resources()
    reason = (
        f"nothing finished for {seconds:g} s with {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs free; "
        "run again when the cluster has recovered, or raise harmonize.timeout_s"
    )
    for worker, row in busy.values():
        ray.kill(worker)
        yield _ledger_row(row, "failed", reason)
    for row in waiting:
        yield _ledger_row(row, "failed", reason)


def _slots(settings: HarmonizeConfig, images: int) -> tuple[dict[str, Any], int]:
    """Resources of an actor, and how many of them to start."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
    slots = settings.slots or gpus or max(1, int(resources.get("CPU", 1)) // 2)
    options |= {"scheduling_strategy": "SPREAD"}
    return options, max(1, min(slots, images))


class HarmonizeWorker:
    """Loads the model once, then takes one image after the other."""

    def __init__(self, files: dict[str, bytes], config: Config, out: str, facts: Row) -> None:
        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            bundle = load_bundle(folder, device)
        self.harmonizer, self.out, self.facts = Harmonizer(bundle, config.harmonize, config.prepare), Path(out), facts

    def harmonize(self, row: Row) -> Row:
        """The ledger row of one image, whose derivative and sidecar are then on disk; an exception belongs to its row."""
        start = time.perf_counter()
        try:
            outcome = self._harmonize(row)
        except MMHError as error:
            outcome = _ledger_row(row, "failed", str(error))
        except Exception as error:
            outcome = _ledger_row(row, "failed", f"{row['uri']}: {type(error).__name__}: {error}")
        return outcome | {"seconds": time.perf_counter() - start}

    def _harmonize(self, row: Row) -> Row:
        if row["status"] != "ok":
            return _ledger_row(row, "failed", row["reason"])
        known = self.harmonizer.bundle.config.model.sequences
        if row["sequence"] not in known:
            reason = f"sequence {row['sequence']}; this model harmonizes {', '.join(known)}"
            return _ledger_row(row, "refused", reason)
        relative = output_path(parse(row["uri"]))
        target, digest = self.out / relative, sha256_file(row["uri"])
        if _is_current(row["earlier"], target, digest, self.facts):
            return _ledger_row(row, "skipped", None, str(relative), digest)
        scan = self._with_less_memory(row)
        write_volume(scan.volume, target)
        write_sidecar(target, self._sidecar(row, scan, digest))
        return _ledger_row(row, "done", None, str(relative), digest)

    def _with_less_memory(self, row: Row) -> HarmonizedScan:
        """Harmonize; where memory runs out, with half the batch, again and again, then on the CPU."""
        volume = read_volume(row["uri"])
        mask = read_volume(row["mask_uri"]).data > 0.5 if row["mask_uri"] else None
        while True:
            try:
                return self.harmonizer.run(volume, row["sequence"], mask)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if self.harmonizer.settings.batch_slabs == 1:
                    self.harmonizer.bundle.model.to("cpu")
                smaller = with_smaller_batches(self.harmonizer.settings)
                log.warning("%s: out of memory, %d slabs a batch", row["image_id"], smaller.batch_slabs)
                self.harmonizer.settings = smaller

    def _sidecar(self, row: Row, scan: HarmonizedScan, digest: str) -> Row:
        """What was done to the image, for whoever finds it."""
        scaling, bundle = scan.prepared.scaling, self.harmonizer.bundle
        return {
            "Sources": [row["uri"]],
            "SourceSHA256": digest,
            "Model": {"URI": self.facts["model"], "Hash": bundle.hash, "CodeVersion": bundle.facts["code_version"]},
            "TargetSite": None,
            "SkullStripped": scan.stripped,
            "Units": _UNITS[self.harmonizer.settings.intensity],
            "SourceSite": row["site"],
            "Preparation": list(scan.prepared.steps),
            "IntensityMapping": {
                "Low": scaling.low,
                "High": scaling.high,
                "Formula": "unit = (scan - Low) / (High - Low)",
            },
            "Registration": _registration(scan),
            "Settings": to_dict(self.harmonizer.settings) | {"prepare": to_dict(self.harmonizer.prepare)},
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


def _is_current(earlier: Row | None, target: Path, digest: str, facts: Row) -> bool:
    if earlier is None or earlier["status"] not in ("done", "skipped") or not _is_whole(target):
        return False
    wanted = {"input_sha256": digest, "model_hash": facts["model_hash"], "settings_hash": facts["settings_hash"]}
    return all(earlier[key] == value for key, value in wanted.items())


def _is_whole(target: Path) -> bool:
    """Whether image and sidecar are both there; each is whole if it is there at all."""
    return target.is_file() and sidecar_path(target).is_file()


def _ledger_row(row: Row, status: str, reason: str | None, output: str | None = None, digest: str | None = None) -> Row:
    return {
        "image_id": row["image_id"],
        "source": row["uri"],
        "output": output,
        "status": status,
        "reason": reason,
        "seconds": 0.0,
        "input_sha256": digest,
    }
