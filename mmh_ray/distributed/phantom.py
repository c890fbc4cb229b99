"""`mmh phantom`: a simulated multi-site BIDS archive with its truth, one Ray task a subject; same seed, same bytes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import ray

from mmh_ray import __version__
from mmh_ray.bids.derivatives import BIDS_VERSION
from mmh_ray.config import PhantomConfig
from mmh_ray.distributed.cluster import connect
from mmh_ray.errors import ConfigError
from mmh_ray.files import read_object
from mmh_ray.imaging.volume import Volume, write_volume
from mmh_ray.progress import progress
from mmh_ray.provenance import check_place, whole_file, write_json
from mmh_ray.simulation.anatomy import TISSUES, Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SEQUENCES, SITES, Scanner, canonical, noise_free, render

GENERATOR = "mmh_ray.phantom"
"""Name in `GeneratedBy`; not that of the derivatives, so that an archive is never taken for a harmonizer's output."""

SEED_STRIDE = 10_000
"""Person seeds of one archive are ``seed * SEED_STRIDE + number``."""

FIRST_TRAINING_SEED = 1_000_000
"""The training simulation draws its people from here on: an archive's people must lie below."""

AGES = (20.0, 85.0)
"""Range of ages in years; every site has the same distribution."""

_README = """\
A simulated multi-site archive. No real person was scanned.

People are drawn from the ICBM-152 tissue fractions; scanners are signal equations with bias field, blur, noise and
quantisation. sub-traveler* were scanned at every site, one session each. derivatives/masks holds brain masks,
derivatives/truth the tissue fractions, the lesions and the noise-free images in the canonical style; of traveling people
also what every scanner would have shown without noise, bias field and grey levels.
"""


@dataclass(frozen=True)
class Subject:
    """Who is scanned where.

    Attributes
    ----------
    label, sex:
        Without `sub-`; M or F.
    number:
        Position in the archive, part of every random seed.
    sites:
        Indices into :data:`mmh_ray.simulation.phantom.SITES`.
    traveling:
        Whether each scan is a session of its own.
    """

    label: str
    number: int
    person: Person
    sex: str
    sites: tuple[int, ...]
    traveling: bool


def make_archive(out: str, config: PhantomConfig) -> None:
    """Write the archive; what an earlier run with the same settings left is written over with the same bytes.

    Parameters
    ----------
    out:
        Local or mounted folder, reachable from every node.

    Raises
    ------
    ConfigError
        If the folder holds anything but an archive of the same settings, or the settings leave nobody to scan or need
        seeds that belong to the training simulation.
    """
    subjects = plan(config)
    root = _claim(out, config)
    _write_tables(root, subjects)
    connect()
    task = ray.remote(num_cpus=1)(write_subject)
    pending = [task.remote(subject, str(root), config) for subject in subjects]
    with progress(len(subjects), "Scanning phantoms", unit="subjects") as advance:
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
            advance(len(done))


def plan(config: PhantomConfig) -> list[Subject]:
    """Everybody in the archive: single-site subjects site by site, then the traveling ones.

    Raises
    ------
    ConfigError
        If there is nobody, or person seeds would reach :data:`FIRST_TRAINING_SEED` or another archive's.
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
        raise ConfigError(f"phantom.seed={config.seed}", f"0 to {seeds - 1}", "Higher ones belong to training.")
    everywhere = tuple(range(config.sites))
    groups = [(SITES[index].name, everywhere[index : index + 1], config.subjects_per_site) for index in everywhere]
    groups.append(("traveler", everywhere, config.travelers))
    numbers = itertools.count()
    return [
        subject
        for index, (name, sites, size) in enumerate(groups)
        for subject in _group(name, sites, size, numbers, np.random.default_rng([config.seed, 1, index]), config)
    ]


def _group(
    name: str,
    sites: tuple[int, ...],
    size: int,
    numbers: Iterator[int],
    rng: np.random.Generator,
    config: PhantomConfig,
) -> Iterator[Subject]:
    """Subjects of one site, or the traveling ones; ages are stratified, so that small groups are alike too."""
    strata = rng.permutation(size)
    for index, number in zip(range(size), numbers, strict=False):
        share = (strata[index] + rng.uniform()) / size
        age = round(float(AGES[0] + share * (AGES[1] - AGES[0])), 1)
        has_lesions, count, sex = rng.uniform() < config.lesions, int(rng.integers(2, 6)), "MF"[rng.integers(2)]
        person = Person(config.seed * SEED_STRIDE + number, age, count if has_lesions else 0)
        yield Subject(f"{name}{index + 1:02d}", number, person, sex, sites, name == "traveler")


def write_subject(subject: Subject, root: str, config: PhantomConfig) -> None:
    """Write one subject's scans with sidecars, brain masks and truth; depends on nothing but its arguments."""
    anatomy = simulate_anatomy(subject.person, config.spacing_mm)
    for index in subject.sites:
        scanner, sub = SITES[index], f"sub-{subject.label}"
        session = (f"ses-{scanner.name}",) if subject.traveling else ()
        folder, stem = Path(sub, *session, "anat"), "_".join((sub, *session))
        for position, sequence in enumerate(SEQUENCES):
            rng = np.random.default_rng([config.seed, subject.number, index, position])
            scan = Volume(render(anatomy, scanner, sequence, rng, config.spacing_mm), anatomy.affine)
            _write_scan(scan, Path(root, folder, f"{stem}_{sequence}.nii.gz"), scanner.levels)
            write_json(Path(root, folder, f"{stem}_{sequence}.json"), _sidecar(scanner, sequence))
            if subject.traveling:
                quiet = render(anatomy, noise_free(scanner), sequence, rng, config.spacing_mm)
                path = Path(root, "derivatives/truth", folder, f"{stem}_desc-noisefree_{sequence}.nii.gz")
                write_volume(Volume(quiet, anatomy.affine), path)
        mask = Volume(anatomy.brain, anatomy.affine)
        write_volume(mask, Path(root, "derivatives/masks", folder, f"{stem}_desc-brain_mask.nii.gz"), np.uint8)
    _write_truth(subject, anatomy, Path(root, "derivatives/truth"), config.spacing_mm)


def _write_scan(scan: Volume, path: Path, levels: int) -> None:
    """Store grey levels as the integers a scanner stores, with the slope that gives the intensities back."""
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
    """The archive's folder with its description, refused where it would mix with something else."""
    if "://" in out:
        raise ConfigError(
            f"phantom archive at {out}", "a local or mounted folder", "Copy it to the object store after."
        )
    root, settings = Path(out).resolve(), asdict(config)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        found = _settings_of(root)
        if found is None:
            raise ConfigError(
                f"{out}: not an archive of `mmh phantom`", "a new or empty folder", "Name another folder."
            )
        if found != settings:
            raise ConfigError(
                f"{out}: a phantom archive of {found}", f"one of {settings}", "Remove it or name another."
            )
    _check_links(root)
    write_json(root / "dataset_description.json", _description("Phantom brains", "raw") | {"Simulation": settings})
    _write_text(root / "README", _README)
    for name, kind in (("masks", "brain masks"), ("truth", "truth")):
        description = _description(f"Phantom brains, {kind}", "derivative") | {"SourceDatasets": [{"URL": "../.."}]}
        write_json(root / "derivatives" / name / "dataset_description.json", description)
    return root


def _check_links(root: Path) -> None:
    """Refuse an earlier archive with a link to a folder: scans would be written where it leads to."""
    for folder, folders, _ in os.walk(root):
        for name in folders:
            check_place(Path(folder, name, "scan"), root, ConfigError)


def _description(name: str, kind: str) -> dict[str, Any]:
    generated = [{"Name": GENERATOR, "Version": __version__}]
    return {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": kind, "GeneratedBy": generated}


def _settings_of(root: Path) -> dict[str, Any] | None:
    """Settings of the archive that an earlier run made there; None for anything else."""
    try:
        description = read_object(root / "dataset_description.json")
        made = description["DatasetType"] == "raw" and description["GeneratedBy"][0]["Name"] == GENERATOR
        return description["Simulation"] if made else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_tables(root: Path, subjects: Iterable[Subject]) -> None:
    rows = [("participant_id", "site", "age", "sex")]
    for subject in subjects:
        site = "n/a" if subject.traveling else SITES[subject.sites[0]].name
        rows.append((f"sub-{subject.label}", site, str(subject.person.age), subject.sex))
        if subject.traveling:
            names = [SITES[index].name for index in subject.sites]
            path = root / f"sub-{subject.label}" / f"sub-{subject.label}_sessions.tsv"
            _write_tsv(path, [("session_id", "site"), *((f"ses-{name}", name) for name in names)])
    _write_tsv(root / "participants.tsv", rows)


def _write_tsv(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    _write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
