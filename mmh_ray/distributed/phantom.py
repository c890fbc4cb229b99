"""`mmh phantom`: simulates a multi-site BIDS archive and its truth, one Ray task per subject; same seed, same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mmh_ray import __version__
from mmh_ray.bids.derivatives import BIDS_VERSION
from mmh_ray.config import PhantomConfig
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.task_pool import map_unordered
from mmh_ray.errors import ConfigError
from mmh_ray.files import read_object
from mmh_ray.imaging.volume import Volume, write_volume
from mmh_ray.provenance import check_place, whole_file, write_json
from mmh_ray.simulation.anatomy import TISSUES, Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SEQUENCES, SITES, Scanner, canonical, noise_free, render

GENERATOR = "mmh_ray.phantom"
"""Name in `GeneratedBy`; differs from that of derivatives, so that an archive is not mistaken for harmonized output."""

SEED_STRIDE = 10_000
"""Person seeds of one archive are ``seed * SEED_STRIDE + number``."""

FIRST_TRAINING_SEED = 1_000_000
"""The training simulation uses seeds from this number on; the seeds of an archive's people must be smaller."""

AGES = (20.0, 85.0)
"""Range of ages in years, with the same distribution at every site."""

_README = """\
A simulated multi-site archive. No real person was scanned.

People are drawn from the ICBM-152 tissue fractions; scanners are signal equations with bias field, blur, noise and
quantisation. sub-traveler* were scanned at every site, one session each. derivatives/masks holds brain masks,
derivatives/truth the tissue fractions, the lesions and the noise-free images in the canonical style; of \
traveling people
also what every scanner would have shown without noise, bias field and grey levels.
"""


@dataclass(frozen=True)
class Subject:
    """A simulated person, and the sites of the scans.

    Attributes
    ----------
    label:
        Without `sub-`.
    sex:
        M or F.
    number:
        Position in the archive, part of every random seed.
    sites:
        Indices into :data:`mmh_ray.simulation.phantom.SITES`.
    traveling:
        Whether each site is a separate session.
    """

    label: str
    number: int
    person: Person
    sex: str
    sites: tuple[int, ...]
    traveling: bool


def make_archive(out: str, config: PhantomConfig) -> None:
    """Write the archive; files of an earlier run with the same settings are overwritten with the same bytes.

    Parameters
    ----------
    out:
        Local or mounted folder, reachable from every node.

    Raises
    ------
    ConfigError
        If the folder holds anything but an archive of the same settings, or the settings describe no subject or need
        seeds of the training simulation.
    """
    subjects = plan(config)
    root = _claim(out, config)
    _write_tables(root, subjects)
    connect()
    for written in map_unordered(write_subject, subjects, (root, config), "Scanning phantoms", "subjects"):
        if isinstance(written.result, Exception):
            raise written.result


def plan(config: PhantomConfig) -> list[Subject]:
    """All subjects of the archive: those of a single site, site by site, then the traveling ones.

    Raises
    ------
    ConfigError
        If there is no subject, or person seeds would reach :data:`FIRST_TRAINING_SEED` or those of another archive.
    """
    count = config.sites * config.subjects_per_site + config.travelers
    if not count:
        raise ConfigError(
            "a phantom archive of 0 subjects", "at least one", "Set phantom.subjects_per_site or travelers."
        )
    if count > SEED_STRIDE:
        raise ConfigError(f"a phantom archive of {count} subjects", f"at most {SEED_STRIDE}", "Make several archives.")
    seeds = FIRST_TRAINING_SEED // SEED_STRIDE
    if not 0 <= config.seed < seeds:
        raise ConfigError(f"phantom.seed={config.seed}", f"0 to {seeds - 1}", "Higher seeds are used by training.")
    subjects: list[Subject] = []
    for site in range(config.sites):
        subjects += _subjects_at((site,), config.subjects_per_site, len(subjects), config)
    all_sites = tuple(range(config.sites))
    subjects += _subjects_at(all_sites, config.travelers, len(subjects), config, traveling=True)
    return subjects


def _subjects_at(
    sites: tuple[int, ...], size: int, first_number: int, config: PhantomConfig, traveling: bool = False
) -> Iterator[Subject]:
    """Subjects who are scanned at the same sites; ages are stratified, so that small groups are alike, too."""
    group = config.sites if traveling else sites[0]
    name = "traveler" if traveling else SITES[sites[0]].name
    rng = np.random.default_rng([config.seed, 1, group])
    strata = rng.permutation(size)
    youngest, oldest = AGES
    for position in range(size):
        number = first_number + position
        share = (strata[position] + rng.uniform()) / size
        age = float(youngest + share * (oldest - youngest))
        has_lesions = rng.uniform() < config.lesions
        lesions = int(rng.integers(2, 6))  # drawn for all, so that phantom.lesions changes no other random number
        sex = "MF"[rng.integers(2)]
        person = Person(
            seed=config.seed * SEED_STRIDE + number,
            age=round(age, 1),
            lesions=lesions if has_lesions else 0,
        )
        yield Subject(
            label=f"{name}{position + 1:02d}",
            number=number,
            person=person,
            sex=sex,
            sites=sites,
            traveling=traveling,
        )


def write_subject(subject: Subject, root: Path, config: PhantomConfig) -> None:
    """Write one subject's scans with sidecars, brain masks and truth; depends only on its arguments."""
    masks = root / "derivatives/masks"
    truth = root / "derivatives/truth"
    anatomy = simulate_anatomy(subject.person, config.spacing_mm)
    for site in subject.sites:
        scanner = SITES[site]
        names = [f"sub-{subject.label}"]
        if subject.traveling:
            names.append(f"ses-{scanner.name}")
        folder = Path(*names, "anat")
        stem = "_".join(names)
        for position, sequence in enumerate(SEQUENCES):
            rng = np.random.default_rng([config.seed, subject.number, site, position])
            scan = Volume(render(anatomy, scanner, sequence, rng, config.spacing_mm), anatomy.affine)
            _write_scan(scan, root / folder / f"{stem}_{sequence}.nii.gz", scanner.levels)
            write_json(root / folder / f"{stem}_{sequence}.json", _sidecar(scanner, sequence))
            if subject.traveling:
                without_noise = render(anatomy, noise_free(scanner), sequence, rng, config.spacing_mm)
                path = truth / folder / f"{stem}_desc-noisefree_{sequence}.nii.gz"
                write_volume(Volume(without_noise, anatomy.affine), path)
        mask = Volume(anatomy.brain, anatomy.affine)
        write_volume(mask, masks / folder / f"{stem}_desc-brain_mask.nii.gz", np.uint8)
    _write_truth(subject, anatomy, truth, config.spacing_mm)


def _write_scan(scan: Volume, path: Path, levels: int) -> None:
    """Write a scan as a scanner stores it: integer grey levels, with the slope that gives the intensities."""
    if not levels:
        write_volume(scan, path)
        return
    step = float(scan.data.max()) / levels
    stored = np.round(scan.data / step).astype(np.uint8 if levels < 256 else np.int16)
    image = nib.Nifti1Image(stored, scan.affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(step, 0)
    with whole_file(path) as partial:
        nib.save(image, partial)


def _write_truth(subject: Subject, anatomy: Anatomy, root: Path, spacing_mm: float) -> None:
    sub = f"sub-{subject.label}"
    stem = str(root / sub / "anat" / sub)
    for sequence in SEQUENCES:
        noisefree = Volume(canonical(anatomy, sequence, spacing_mm), anatomy.affine)
        write_volume(noisefree, f"{stem}_desc-noisefree_{sequence}.nii.gz")
    shares = dict(zip(TISSUES, anatomy.fractions, strict=True))
    for tissue in ("GM", "WM", "CSF"):
        write_volume(Volume(shares[tissue], anatomy.affine), f"{stem}_label-{tissue}_probseg.nii.gz")
    if subject.person.lesions:
        lesion = Volume(shares["lesion"] > 0.5, anatomy.affine)
        write_volume(lesion, f"{stem}_label-lesion_mask.nii.gz", np.uint8)


def _sidecar(scanner: Scanner, sequence: str) -> dict[str, Any]:
    """BIDS keys; times in seconds."""
    timing = {"RepetitionTime": scanner.tr_t1 / 1000, "FlipAngle": scanner.flip}
    if sequence == "T2w":
        timing = {"RepetitionTime": scanner.tr_t2 / 1000, "EchoTime": scanner.te / 1000}
    return {
        "Manufacturer": scanner.manufacturer,
        "MagneticFieldStrength": scanner.field_strength_t,
        "InstitutionName": scanner.name,
        **timing,
    }


def _claim(out: str, config: PhantomConfig) -> Path:
    """Write the archive's descriptions, and return its folder; refuses a folder with anything else in it."""
    if "://" in out:
        received = f"phantom archive at {out}"
        raise ConfigError(received, "a local or mounted folder", "Copy it to the object store afterwards.")
    root = Path(out).resolve()
    settings = asdict(config)
    is_free = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    if not is_free:
        earlier_settings = _settings_of(root)
        if earlier_settings is None:
            received = f"{out}: not an archive of `mmh phantom`"
            raise ConfigError(received, "a new or empty folder", "Name another folder.")
        if earlier_settings != settings:
            received = f"{out}: a phantom archive of {earlier_settings}"
            raise ConfigError(received, f"one of {settings}", "Remove it or name another folder.")
    _check_links(root)
    write_json(root / "dataset_description.json", _description("Phantom brains", "raw") | {"Simulation": settings})
    _write_text(root / "README", _README)
    for name, kind in (("masks", "brain masks"), ("truth", "truth")):
        description = _description(f"Phantom brains, {kind}", "derivative") | {"SourceDatasets": [{"URL": "../.."}]}
        write_json(root / "derivatives" / name / "dataset_description.json", description)
    return root


def _check_links(root: Path) -> None:
    """Refuse an earlier archive with a link to a folder: scans would be written to the link's target."""
    for folder, folders, _ in os.walk(root):
        for name in folders:
            check_place(Path(folder, name, "scan"), root, ConfigError)


def _description(name: str, kind: str) -> dict[str, Any]:
    generated = [{"Name": GENERATOR, "Version": __version__}]
    return {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": kind, "GeneratedBy": generated}


def _settings_of(root: Path) -> dict[str, Any] | None:
    """Settings of the archive that an earlier run wrote there; None for anything else."""
    try:
        description = read_object(root / "dataset_description.json")
        is_raw = description["DatasetType"] == "raw"
        is_ours = description["GeneratedBy"][0]["Name"] == GENERATOR
        return description["Simulation"] if is_raw and is_ours else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_tables(root: Path, subjects: Iterable[Subject]) -> None:
    participants = [("participant_id", "site", "age", "sex")]
    for subject in subjects:
        name = f"sub-{subject.label}"
        site = "n/a" if subject.traveling else SITES[subject.sites[0]].name
        participants.append((name, site, str(subject.person.age), subject.sex))
        if subject.traveling:
            sessions = [("session_id", "site")]
            for index in subject.sites:
                sessions.append((f"ses-{SITES[index].name}", SITES[index].name))
            _write_tsv(root / name / f"{name}_sessions.tsv", sessions)
    _write_tsv(root / "participants.tsv", participants)


def _write_tsv(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    _write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
