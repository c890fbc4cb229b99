"""Harmonizes one scan at a time, without Ray: for notebooks, and for `mmh harmonize SCAN OUT`.

import mmh_ray as mmh

model = mmh.load()
harmonized = model.harmonize(nibabel.load("sub-01_T1w.nii.gz"), sequence="T1w")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from mmh_ray.bids.contrast import contrast_flags
from mmh_ray.bids.derivatives import sidecar_path, write_sidecar
from mmh_ray.bids.entities import parse
from mmh_ray.config import Config
from mmh_ray.errors import ConfigError, DataError, naming_mask
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.sidecar import account_of
from mmh_ray.imaging.volume import Volume, as_nifti, check_geometry, check_voxels, read_mask, read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.models.shipped import BASE_MODEL
from mmh_ray.provenance import sha256_file
from mmh_ray.tracking import resolve_model

EXTENSIONS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes
    ----------
    harmonizer:
        Harmonizes arrays.
    uri:
        Name of the model: ``mmh-base``, ``models:/NAME/VERSION`` or the URI of a folder.
    """

    harmonizer: Harmonizer
    uri: str

    @property
    def sequences(self) -> tuple[str, ...]:
        """BIDS suffixes of the sequences that the model was trained on."""
        return self.harmonizer.bundle.config.model.sequences

    def harmonize(
        self, image: nib.spatialimages.SpatialImage, sequence: str, mask: nib.spatialimages.SpatialImage | None = None
    ) -> nib.Nifti1Image:
        """Harmonize a scan into the model's unified domain, on the scan's own grid.

        Parameters
        ----------
        image:
            The scan, 3-D, any orientation and spacing.
        sequence:
            BIDS suffix of its sequence, one of :attr:`sequences`.
        mask:
            Brain mask on any grid in the same space, brain above 0; None estimates one.

        Returns
        -------
        nibabel.Nifti1Image
            float32, unit intensity, unless the settings say otherwise. ``image.header["descrip"]`` is the scan's.

        Raises
        ------
        ModelError
            If the model was not trained on the sequence.
        DataError
            If the scan cannot be used, or its mask does not fit; a RefusedError if it must not be harmonized.
        """
        volume = _volume(image, "the image")
        brain: Volume | None = None
        if mask is not None:
            mask_volume = _volume(mask, "the mask")
            brain = mask_volume.like((mask_volume.data > 0).astype(np.float32))
        harmonized = self.harmonizer.run(volume, sequence, brain)
        return as_nifti(harmonized.volume)


def load(model: str = BASE_MODEL, config: Config | None = None, background: Executor | None = None) -> Model:
    """Load a model by name.

    Parameters
    ----------
    model:
        ``mmh-base``, which is shipped with the package; a bundle folder; ``models:/NAME@ALIAS`` or
        ``models:/NAME/VERSION``.
    config:
        Settings of sampling and flags (sections ``harmonize``, ``prepare``, ``quality``) and of the registry
        (``tracking``).
    background:
        As for :func:`mmh_ray.models.bundle.load_bundle`: errors of a damaged model are raised when it is first used.

    Raises
    ------
    ModelError
        If there is no such model, or it is damaged.
    """
    tracking = Config().tracking if config is None else config.tracking
    folder, uri = resolve_model(model, tracking)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bundle = load_bundle(folder, device, background)
    if config is None:
        return Model(Harmonizer(bundle), uri)
    return Model(Harmonizer(bundle, config.harmonize, config.prepare, config.quality), uri)


def harmonize_file(
    scan: str | Path, out: str | Path, model: Model, sequence: str | None = None, mask: str | Path | None = None
) -> tuple[str, ...]:
    """Harmonize one file into another, with a sidecar beside it.

    Parameters
    ----------
    scan, mask:
        NIfTI files; without a mask one is estimated.
    out:
        New file, ``.nii`` or ``.nii.gz``; written whole or not at all.
    sequence:
        BIDS suffix; None takes it from the scan's name.

    Returns
    -------
    tuple of str
        Flags: reasons to look at the result; empty if nothing is out of bounds.

    Raises
    ------
    ConfigError
        If the sequence is missing, or ``out`` exists already or is not the name of a NIfTI file.
    DataError, ModelError
        As :meth:`Model.harmonize`.
    """
    target = Path(out)
    _check_target(target)
    if sequence is None:
        sequence = _sequence_of(Path(scan), model.sequences)
    volume = read_volume(scan)
    brain = None if mask is None else read_mask(mask)
    mask_path = None if mask is None else str(mask)
    with naming_mask(mask_path):
        harmonized = model.harmonizer.run(volume, sequence, brain)
    flags = (*_name_flags(scan), *harmonized.flags)
    write_volume(harmonized.volume, target)
    bundle = model.harmonizer.bundle
    fields = {
        "Sources": [str(scan)],
        "SourceSHA256": sha256_file(scan),
        "BrainMask": mask_path,
        "Sequence": sequence,
        "Model": {"URI": model.uri, "Hash": bundle.hash, "CodeVersion": bundle.facts["code_version"]},
        "Flags": list(flags),
        **account_of(harmonized, model.harmonizer, has_target=False),
    }
    try:
        write_sidecar(target, fields)
    except BaseException:
        target.unlink(missing_ok=True)  # an image without a sidecar is incomplete
        raise
    return flags


def is_file_name(path: str) -> bool:
    """Whether a path is the name of a NIfTI file, not of an archive."""
    return path.lower().endswith(EXTENSIONS)


def _check_target(target: Path) -> None:
    if not is_file_name(target.name):
        raise ConfigError(f"output {target}", "a file name that ends in .nii.gz or .nii", "Change the name.")
    for path in (target, sidecar_path(target)):
        if os.path.lexists(path):
            raise ConfigError(f"output {path}, which exists already", "a new file", "Choose another, or remove it.")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"output {target}", "an existing folder", "Make the folder first.")


def _sequence_of(scan: Path, known: Sequence[str]) -> str:
    """The BIDS suffix of a file name: of ``sub-01_T1w.nii.gz``, or of ``T1w.nii.gz``."""
    stem = scan.name.removesuffix(".gz").removesuffix(".nii")
    suffix = stem.rpartition("_")[2]
    if suffix in known:
        return suffix
    received = f"{scan.name}, a name without a sequence"
    raise ConfigError(received, f"one of {', '.join(known)}", "Add --sequence, such as T1w.")


def _name_flags(scan: str | Path) -> tuple[str, ...]:
    try:
        parse(scan)
    except DataError:  # a single file need not have a BIDS name
        return ()
    return contrast_flags(scan)


def _volume(image: nib.spatialimages.SpatialImage, name: str) -> Volume:
    """Convert a nibabel image to a volume; DataError unless it is one 3-D scan."""
    data = np.asarray(image.dataobj)
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    is_real = np.issubdtype(data.dtype, np.number) and not np.iscomplexobj(data)
    if data.ndim != 3 or not is_real:
        received = f"{name} of shape {data.shape} and type {data.dtype}"
        raise DataError(received, "one 3-D volume of numbers", "Select one volume.")
    affine = np.asarray(image.affine, np.float64)
    check_geometry(data.shape, affine, name)
    values = data.astype(np.float32)
    check_voxels(values, name)
    header = nib.Nifti1Header.from_header(image.header)
    return Volume(values, affine, header)
