"""Copies of one image give identical derivatives, byte for byte, for any number of actors and threads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmh_ray.bids.derivatives import read_sidecar
from mmh_ray.config import Config, PrepareConfig
from mmh_ray.distributed.harmonize import harmonize
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.job import Job
from mmh_ray.imaging.volume import read_volume, write_volume
from mmh_ray.models.bundle import load_bundle
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render

pytestmark = pytest.mark.ray

COPIES = 2


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    """Full preparation, with bias field correction and registration; all three planes, to have many slabs."""
    every_plane = replace(tiny_config.harmonize, planes=("axial", "coronal", "sagittal"))
    return replace(tiny_config, prepare=PrepareConfig(n4_iterations=(5, 5)), harmonize=every_plane)


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with two copies of one rotated head, which needs registration."""
    root = tmp_path_factory.mktemp("copies") / "bids"
    anatomy = simulate_anatomy(Person(4, scalp=True), 4.0)
    scan = render(anatomy, SITES[0], "T1w", np.random.default_rng(0), 4.0)
    turn = Rotation.from_euler("xyz", [12, 5, 3], degrees=True).as_matrix()
    centre = (np.array(scan.shape) - 1) / 2
    turned = ndimage.affine_transform(scan, turn, offset=centre - turn @ centre, order=1)
    paths = [root / f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz" for number in range(COPIES)]
    for path in paths:
        path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(turned.astype(np.float32), anatomy.affine), paths[0])
    for path in paths[1:]:
        shutil.copyfile(paths[0], path)
    return root


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[[Config], Path], config: Config) -> Path:
    """An untrained model with that preparation."""
    return make_bundle(config)


def contents(out: Path) -> dict[str, set[bytes]]:
    """Distinct contents of the derivatives, by the part of the file name after the subject.

    Sidecars name their source, so only some of their fields are compared.
    """
    found: dict[str, set[bytes]] = {}
    for path in sorted(out.glob("sub-*/*/*")):
        kind = path.name.partition("_")[2]
        if path.suffix != ".json":
            found.setdefault(kind, set()).add(path.read_bytes())
            continue
        sidecar = read_sidecar(path.with_suffix(".nii.gz"))
        told = [sidecar[key] for key in ("QC", "Flags", "Registration", "BrainHistogram", "Preparation")]
        found.setdefault(kind, set()).add(repr(told).encode())
    return found


@pytest.fixture
def many_threads() -> Iterator[None]:
    """Many threads, as in a notebook on a large machine."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), torch.get_num_threads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(8)
    torch.set_num_threads(4)
    yield
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before[0])
    torch.set_num_threads(before[1])


@pytest.mark.usefixtures("ray_cluster", "many_threads")
def test_copies_of_an_image_give_copies_of_a_derivative(
    bids: Path, bundle: Path, config: Config, tmp_path: Path
) -> None:
    first: dict[str, set[bytes]] = {}
    for slots in (1, COPIES):  # two images at a time in one actor, or one in each of two
        out = tmp_path / f"slots-{slots}"
        settings = replace(config, harmonize=replace(config.harmonize, slots=slots))
        assert harmonize(Job(str(bids), str(out), str(bundle), settings)) == {"done": COPIES}
        found = contents(out)
        assert len(found) == 4
        assert {kind: len(distinct) for kind, distinct in found.items()} == dict.fromkeys(found, 1)
        first = first or found
        assert found == first
    scan = read_volume(next(bids.glob("sub-00/anat/*.nii.gz")))
    alone = Harmonizer(load_bundle(bundle), config.harmonize).run(scan, "T1w")
    write_volume(alone.volume, tmp_path / "alone.nii.gz")
    assert (tmp_path / "alone.nii.gz").read_bytes() in first["desc-harmonized_T1w.nii.gz"]
