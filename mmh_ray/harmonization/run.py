"""Gathers the inputs of a run over an archive (images, model, target domains), and checks them before anything is
written. No Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath, PurePosixPath

from mmh_ray import tracking
from mmh_ray.bids.derivatives import check_dataset
from mmh_ray.bids.entities import parse
from mmh_ray.bids.filters import Filters
from mmh_ray.bids.manifest import find_images
from mmh_ray.bids.rows import NO_RESULT, LedgerRow, ManifestRow
from mmh_ray.bids.status import RECORD, RunRecord, utc_now
from mmh_ray.config import Config, HarmonizeConfig, flatten, to_dict
from mmh_ray.errors import ConfigError, DataError, naming_mask
from mmh_ray.harmonization.harmonizer import Harmonizer, job_preparation
from mmh_ray.harmonization.job import Job, ModelIdentity, Task
from mmh_ray.harmonization.memory import check_memory_setting, mark_too_large
from mmh_ray.harmonization.outputs import mark_shared_outputs
from mmh_ray.harmonization.reference_target import target_of_scan
from mmh_ray.harmonization.target_domain import TargetDomain, check_names
from mmh_ray.imaging.volume import read_mask, read_volume
from mmh_ray.models.bundle import Bundle, load_bundle
from mmh_ray.models.target.bundle import SAMPLING, Target, load_target
from mmh_ray.object_store import is_remote
from mmh_ray.provenance import check_place, code_version, hash_of, sha256_file

log = logging.getLogger(__name__)

VERSIONS = ("ray", "torch", "diffusers", "SimpleITK", "nibabel", "numpy")
"""Packages with their versions in the record of a run."""

_INERT = ("slots", "gpus_per_actor", "images_per_actor", "memory_gb", "wait_s", "timeout_s", "batch_slabs")
"""Settings that change no outcome, and no voxel except by rounding; they are left out of the settings hash.

Only `batch_slabs` below 8 changes voxels, by up to 3e-6, as the network's sums are then computed in another order.
"""


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run.

    Attributes
    ----------
    images:
        The selected images of the archive; rows of unusable images have a reason.
    model_folder:
        Folder of the model bundle on this machine.
    model:
        Identity of the model.
    domains:
        Domains that every image is mapped to.
    """

    images: list[ManifestRow]
    model_folder: Path
    model: ModelIdentity
    domains: list[TargetDomain]

    def tasks(self, job: Job, ledger: Mapping[str, LedgerRow]) -> list[Task]:
        """The images to process, each with its ledger rows from earlier runs.

        Parameters
        ----------
        ledger:
            Rows of earlier runs into the folder, by `image_id`.

        Raises
        ------
        ConfigError
            If two targets' derivatives would share names.
        """
        check_names(self.images, self.domains, ledger.values(), job.config.harmonize)
        tasks: list[Task] = []
        for image in self.images:
            earlier: dict[str | None, LedgerRow] = {}
            for domain in self.domains:
                ledger_id = domain.ledger_id(image["image_id"])
                if ledger_id in ledger:
                    earlier[domain.name] = ledger[ledger_id]
            has_failed = any(row["status"] in NO_RESULT for row in earlier.values())
            if has_failed or not job.retry_failed:
                tasks.append({**image, "earlier": earlier})
        return tasks

    def record(self, job: Job, images: int) -> RunRecord:
        """Record of a run that starts now.

        Parameters
        ----------
        images:
            Number of ledger rows to write: one per image and domain.
        """
        settings = to_dict(job.config)
        return RunRecord(
            source=job.bids.rstrip("/") if is_remote(job.bids) else str(Path(job.bids).resolve()),
            model=self.model.uri,
            model_hash=self.model.hash,
            version=code_version(),
            images=images,
            started=utc_now().isoformat(),
            settings={
                "harmonize": settings["harmonize"],
                "prepare": job_preparation(job.config.prepare),
                "quality": settings["quality"],
            },
            versions={name: version(name) for name in VERSIONS},
        )


def gather_inputs(job: Job, folder: Path) -> RunInputs:
    """Find the images, load and check the model, and set up the target domains.

    Parameters
    ----------
    folder:
        The job's ``out``, or its local folder if that is in an object store.

    Raises
    ------
    ConfigError
        If ``out`` contains the archive, is inside it but not below ``derivatives/``, or has derivatives of another
        archive; if a setting would have no effect, or no image remains.
    ModelError
        If the model or a target cannot be loaded.
    """
    check_memory_setting(job.config.harmonize.memory_gb)
    _check_output(job.bids, job.out)
    check_dataset(folder, job.bids)
    model_folder, uri = tracking.resolve_model(job.model, job.config.tracking)
    archive = find_images(job.bids, job.config.manifest.site_pattern, require_site=False)
    bundle = load_bundle(model_folder)  # raises errors of the model here, once, not for each image
    _check_preparation(job.config, bundle.config)
    images = _select(archive, job)
    domains = target_domains(job, model_folder, bundle)
    mark_shared_outputs(images, domains, job.config.harmonize)
    mark_too_large(images, job.config.harmonize.memory_gb)
    return RunInputs(images, model_folder, ModelIdentity(uri, bundle.hash), domains)


def target_domains(job: Job, model_folder: Path, bundle: Bundle) -> list[TargetDomain]:
    """The unified domain, or the domains of the job's targets, whose adapters are added to the bundle's model."""
    config = job.config
    settings = to_dict(config.harmonize) | dict.fromkeys(_INERT, 0)
    settings["prepare"] = job_preparation(config.prepare)
    settings["quality"] = to_dict(config.quality)  # decides which images are refused and flagged
    if not job.targets and job.target_image is None:
        return [TargetDomain(None, hash_of(settings))]
    targets = []
    for name in job.targets:
        folder, uri = tracking.resolve_target(name, model_folder, config.tracking)
        targets.append(load_target(folder, uri, config.style))
    if job.target_image is not None:
        targets.append(_target_of_image(job.target_image, bundle, config))
    domains = []
    for target in targets:
        target.attach(bundle)
        _warn_of_other_sampling(target, config.harmonize)
        domains.append(TargetDomain(target, hash_of(settings | {"target": target.hash})))
    check_names([], domains, [], config.harmonize)
    return domains


def _warn_of_other_sampling(target: Target, settings: HarmonizeConfig) -> None:
    """Warn if a target was trained with other sampling settings: its validation does not apply then."""
    trained = target.sampling(settings)
    for name in SAMPLING:
        trained_with = getattr(trained, name)
        used_with = getattr(settings, name)
        if trained_with != used_with:
            log.warning(
                "target %s: trained with harmonize.%s=%s, used with %s", target.site, name, trained_with, used_with
            )


def _target_of_image(path: str, bundle: Bundle, config: Config) -> Target:
    """Make a target from a scan with a BIDS name."""
    entities = parse(path)
    harmonizer = Harmonizer(bundle, config.harmonize, config.prepare, config.quality)
    mask_path = brain_mask_of(Path(path).resolve(), (*entities.folders, "anat"))
    mask = read_mask(mask_path) if mask_path else None
    with naming_mask(mask_path):
        return target_of_scan(
            harmonizer,
            read_volume(path),
            sequence=entities.suffix,
            name=entities.image_id,
            digest=sha256_file(path),
            mask=mask,
            style_config=config.style,
        )


def brain_mask_of(scan: Path, folders: tuple[str, ...]) -> str | None:
    """The brain mask of a scan in the scan's archive; None if there is no mask, or the scan is not in an archive.

    Parameters
    ----------
    folders:
        Folders of the scan in an archive, by its name, such as ``("sub-01", "anat")``.
    """
    if scan.parts[-len(folders) - 1 : -1] != folders:
        return None
    archive = scan.parents[len(folders)]
    for image in find_images(archive, require_site=False):
        if image["uri"] == str(scan):
            return image["mask_uri"]
    return None


def _check_preparation(config: Config, model_config: Config) -> None:
    """Refuse settings without effect: except for :func:`.job_preparation`, the model decides the preparation.

    A setting with its default value is treated as not given.
    """
    given = flatten(config)
    defaults = flatten(Config())
    used = flatten(model_config)
    free = {f"prepare.{name}" for name in job_preparation(config.prepare)}
    free.add("prepare.shard_volumes")
    for key, value in given.items():
        is_models = key.startswith(("grid.", "prepare.")) and key not in free
        if is_models and value not in (defaults[key], used[key]):
            remedy = "Leave it out, or train a model with this setting."
            raise ConfigError(f"{key}={value}", f"{used[key]}, as in the model's training", remedy)


def _check_output(bids: str, out: str) -> None:
    """Refuse an output folder that would mix with the archive."""
    archive = _resolved(bids)
    output = _resolved(out)
    mixes = archive.is_relative_to(output)
    if output.is_relative_to(archive):
        inside = output.relative_to(archive).parts
        is_derivative = len(inside) >= 2 and inside[0] == "derivatives"
        mixes = mixes or not is_derivative
    if mixes:
        received = f"output {out} and archive {bids}, one inside the other"
        expected = "a folder outside the archive or below its derivatives/"
        raise ConfigError(received, expected, "Choose another folder.")
    if not is_remote(out):
        check_place(Path(out, RECORD), out, ConfigError)


def _resolved(place: str) -> PurePath:
    """A folder's path with links resolved, or its URI in an object store, where there are no links."""
    return PurePosixPath(place) if is_remote(place) else Path(place).resolve()


def _select(images: list[ManifestRow], job: Job) -> list[ManifestRow]:
    """The images of the job's participants, sessions, sequences and filters; ConfigError if a label is unknown."""
    _check_labels("participants", job.participants, {image["subject"] for image in images}, "--participant-label")
    _check_labels("sessions", job.sessions, {image["session"] for image in images}, "--session-label")
    selected = []
    for image in images:
        is_selected = (
            (not job.participants or image["subject"] in job.participants)
            and (not job.sessions or image["session"] in job.sessions)
            and (not job.sequences or image["sequence"] in job.sequences)
            and _is_kept(image, job.filters)
        )
        if is_selected:
            selected.append(image)
    if not selected:
        expected = "images of these participants, sessions, sequences and filters"
        raise ConfigError("no image left to harmonize", expected, "Check the filters.")
    return selected


def _is_kept(image: ManifestRow, filters: Filters) -> bool:
    """Whether filters keep an image; an image with an invalid name is kept, for its row."""
    try:
        return filters.keeps(parse(image["uri"]))
    except DataError:
        return True


def _check_labels(kind: str, labels: Iterable[str], known: set[str | None], flag: str) -> None:
    unknown = set(labels) - known
    if unknown:
        raise ConfigError(f"{kind} {sorted(unknown)}", f"{kind} of the archive", f"Check {flag}.")
