"""One scan without Ray: from Python and from the command line, with the shipped model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mmh_ray as mmh
from mmh_ray.cli import main
from mmh_ray.errors import ConfigError, DataError, ModelError, RefusedError
from mmh_ray.harmonization.one_scan import Model, harmonize_file
from mmh_ray.models.shipped import BASE_MODEL, shipped_bundle
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render

pytestmark = pytest.mark.slow

SPACING = 3.0


@pytest.fixture(scope="module")
def model() -> Model:
    return mmh.load()


@pytest.fixture(scope="module")
def person() -> Anatomy:
    return simulate_anatomy(Person(5), SPACING)


@pytest.fixture(scope="module")
def image(person: Anatomy) -> nib.Nifti1Image:
    """A T1w of a whole brain, in whole numbers, with a description in its header."""
    data = render(person, SITES[0], "T1w", np.random.default_rng(0), SPACING) * person.brain
    data *= 700 / data.max()
    found = nib.Nifti1Image(data.astype(np.int16), person.affine)
    found.header["descrip"] = b"as it came"
    return found


@pytest.fixture
def scan(tmp_path: Path, image: nib.Nifti1Image) -> Path:
    path = tmp_path / "sub-01_T1w.nii.gz"
    nib.save(image, path)
    return path


def tissue(person: Anatomy, image: np.ndarray) -> tuple[float, float, float]:
    """Medians of fluid, grey and white matter."""
    return tuple(float(np.median(image[share > 0.9])) for share in person.fractions[:3])  # type: ignore[return-value]


def test_the_shipped_model_is_one_of_four_sequences_and_small() -> None:
    folder = shipped_bundle(BASE_MODEL)
    assert folder is not None
    assert shipped_bundle("another") is None
    assert mmh.load().sequences == ("T1w", "T2w", "FLAIR", "PDw")
    assert sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file()) < 25e6
    assert (folder / "MODEL_CARD.md").is_file()


def test_the_harmonized_image_is_on_the_grid_of_the_scan(model: Model, image: nib.Nifti1Image, person: Anatomy) -> None:
    found = model.harmonize(image, sequence="T1w")
    assert found.shape == image.shape
    assert found.get_data_dtype() == np.float32
    np.testing.assert_array_equal(found.affine, image.affine)
    assert found.header["descrip"] == image.header["descrip"]
    fluid, grey, white = tissue(person, found.get_fdata())
    assert 0 <= fluid < grey < white < 1.1
    assert (white - grey) / white > 0.3
    assert (
        model.harmonize(image, "T1w", nib.Nifti1Image(person.brain.astype(np.uint8), image.affine)).shape == found.shape
    )


def test_anything_but_a_scan_is_refused(model: Model, image: nib.Nifti1Image) -> None:
    with pytest.raises(ModelError, match="one of T1w, T2w, FLAIR, PDw"):
        model.harmonize(image, "T2starw")
    with pytest.raises(RefusedError):
        model.harmonize(image, "T2w")
    series = nib.Nifti1Image(np.stack([image.get_fdata()] * 2, axis=-1), image.affine)
    with pytest.raises(DataError, match="one 3-D volume"):
        model.harmonize(series, "T1w")
    spoilt = image.get_fdata().copy()
    spoilt[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        model.harmonize(nib.Nifti1Image(spoilt, image.affine), "T1w")


def test_file_and_notebook_agree(model: Model, scan: Path, image: nib.Nifti1Image, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    flags = harmonize_file(scan, out, model)
    np.testing.assert_allclose(nib.load(out).get_fdata(), model.harmonize(image, "T1w").get_fdata(), atol=1e-6)
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["Sequence"] == "T1w"
    assert told["Model"]["URI"] == BASE_MODEL
    assert told["Sources"] == [str(scan)]
    assert told["Flags"] == list(flags)
    assert told["QC"]["registration"] > 0.2


def test_nothing_is_overwritten_and_nothing_is_left_behind(model: Model, scan: Path, tmp_path: Path) -> None:
    before = scan.read_bytes()
    for out, told in (
        (scan, "exists already"),
        (tmp_path / "out.txt", r"ends in \.nii\.gz"),
        (tmp_path / "missing" / "out.nii.gz", "an existing folder"),
    ):
        with pytest.raises(ConfigError, match=told):
            harmonize_file(scan, out, model)
    assert scan.read_bytes() == before
    nameless = scan.rename(tmp_path / "brain.nii.gz")
    with pytest.raises(ConfigError, match="--sequence"):
        harmonize_file(nameless, tmp_path / "out.nii.gz", model)
    with pytest.raises(RefusedError):
        harmonize_file(nameless, tmp_path / "out.nii.gz", model, "T2w")
    assert [path.name for path in tmp_path.iterdir()] == ["brain.nii.gz"]


def test_the_command_starts_no_ray(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    code = f"import sys; from mmh_ray.cli import main; code = main(['harmonize', {str(scan)!r}, {str(out)!r}]); "
    subprocess.run([sys.executable, "-c", code + "assert 'ray' not in sys.modules; sys.exit(code)"], check=True)
    assert nib.load(out).shape == nib.load(scan).shape


@pytest.mark.parametrize("flags", ["--dry-run", "--target alder", "--participant-label 01", "--sequence T1w T2w"])
def test_flags_of_archives_are_refused_for_one_scan(
    scan: Path, tmp_path: Path, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["harmonize", str(scan), str(tmp_path / "out.nii.gz"), *flags.split()]) == 2
    assert f"{flags.split()[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out.nii.gz").exists()
