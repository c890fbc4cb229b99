"""`mmh harmonize` on an archive with bad files, and with an output that is not a writable folder.

Each bad file gets a row in the ledger with its reason, and the good image is still harmonized. A bad output folder is
an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.bids.ledger import current_rows
from mmh_ray.bids.rows import problem_of
from mmh_ray.config import Config
from mmh_ray.distributed.harmonize import harmonize
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.harmonization.job import Job
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

GOOD = "sub-01_T1w"
REASONS = {
    "sub-01/anat/sub-01_T1w.nii.gz": "second file of image sub-01_T1w; expected one. Remove this one or",
    "sub-02_T1w": r"343000 million voxels, about 3\d{4}\.\d GiB to work on; expected at most the",
    "sub-03_T1w": "not a file; expected a regular file",
    "sub-04_T1w": "a broken link; expected a regular file. Fetch its content",
    "sub-05_T1w": "a link out of the archive; expected a file inside it. Copy the file",
    "sub-06_T1w": "unreadable .*; expected a complete NIfTI file. Copy or convert it again",
    "sub-07_T1w": r"voxels of type .*; expected one number per voxel",
    "sub-08_T1w": "expected at least 2 voxels along each axis. Leave single slices out",
    "sub-09_T1w": "singular affine; expected an invertible voxel-to-world matrix. Restore",
    "sub-10_T1w": "Permission denied; expected the right to read and write it. Change",
    "sub-11_T1w": r"1 NaN or infinite voxels; expected finite intensities",
    "sub-12_T1w": r"constant image \(every voxel 7\)",
    "sub-13_T1w": r"unreadable .*; expected a complete NIfTI file",
    "sub-14": "a broken link; expected a readable folder",
    "sub-01/anat/sub-01_T1w copy.nii.gz": r"'T1w copy' .*suffix such as T1w",
    "sub-é/anat/sub-é_T1w.nii": "'sub-é' in file name .* expected key-label of letters and digits",
    "sub-15_T1w": r"sub-15_desc-brain_mask\.nii: unreadable",
    "sub-16_T1w": "a brain mask with no voxel inside; expected the brain and nothing else",
    "sub-17_T1w": "a brain mask with every voxel inside; expected the brain and nothing else",
    "sub-18_T1w": r"brain mask .*sub-18_desc-brain_mask\.nii: a named pipe, not a file; expected a regular file",
    "sub-01/anat/sub-01_T2w.mgz": r"an image in \.mgz; expected \.nii or \.nii\.gz\. Convert it",
    "sub-01/ses-2/sub-01_ses-2_T1w.nii": r"an image in another place; expected it in sub-.*anat/\. Move it",
    "02/anat/sub-02_T1w.nii": r"an image in another place; expected it in sub-.*anat/\. Move it",
}
"""What is wrong with the others: received, expected, remedy."""
if os.geteuid() == 0:
    del REASONS["sub-10_T1w"]  # root reads every file


def write_archive(bids: Path) -> None:
    """Write one good subject and one bad file of each kind; there is no participants.tsv."""
    anatomy = simulate_anatomy(Person(1), 6.0)
    scan = nib.Nifti1Image((700 * canonical(anatomy, "T1w", 6.0)).astype(np.float32), anatomy.affine)

    def put(subject: str, suffix: str = ".nii") -> Path:
        path = bids / f"sub-{subject}/anat/sub-{subject}_T1w{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    nib.save(scan, put("01"))
    nib.save(scan, put("01", ".nii.gz"))
    huge = nib.Nifti1Header()
    huge.set_data_shape((7000, 7000, 7000))  # more than any machine has room for
    huge.set_data_dtype(np.uint8)
    huge.set_sform(np.diag([0.03, 0.03, 0.03, 1]), 1)
    huge["magic"], huge["vox_offset"] = b"n+1", 352
    put("02").write_bytes(huge.binaryblock + bytes(4))
    put("03").mkdir()
    put("04").symlink_to(".git/annex/absent")
    outside = bids.parent / "outside.nii"
    nib.save(scan, outside)
    put("05").symlink_to(outside)
    put("06").touch()
    colours = np.zeros(anatomy.brain.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, anatomy.affine), put("07"))
    nib.save(scan.slicer[:, :, 10:11], put("08"))
    flat = nib.load(put("01")).header
    flat["srow_x"], flat["qform_code"] = 0, 0
    put("09").write_bytes(flat.binaryblock + put("01").read_bytes()[348:])
    infinite = scan.get_fdata(dtype=np.float32).copy()
    infinite[2, 3, 4] = np.inf
    nib.save(nib.Nifti1Image(infinite, anatomy.affine), put("11"))
    nib.save(nib.Nifti1Image(np.full(infinite.shape, 7, np.float32), anatomy.affine), put("12"))
    put("13").write_text("not an image")
    (bids / "sub-14").symlink_to(".git/annex/absent")
    nib.save(scan, put("01").with_name("sub-01_T1w copy.nii.gz"))
    nib.save(scan, put("é"))
    for subject, level in (("15", None), ("16", 0), ("17", 1)):
        nib.save(scan, put(subject))
        mask = bids / f"derivatives/masks/sub-{subject}/anat/sub-{subject}_desc-brain_mask.nii"
        mask.parent.mkdir(parents=True)
        mask.write_bytes(b"no image") if level is None else nib.save(
            nib.Nifti1Image(np.full(scan.shape, level, np.uint8), anatomy.affine), mask
        )
    nib.save(scan, put("18"))
    (bids / "derivatives/masks/sub-18/anat").mkdir(parents=True)
    os.mkfifo(bids / "derivatives/masks/sub-18/anat/sub-18_desc-brain_mask.nii")
    for place in ("sub-01/anat/sub-01_T2w.mgz", "sub-01/ses-2/sub-01_ses-2_T1w.nii", "02/anat/sub-02_T1w.nii"):
        (bids / place).parent.mkdir(parents=True, exist_ok=True)
        (bids / place).touch()
    if "sub-10_T1w" in REASONS:
        nib.save(scan, put("10"))
        put("10").chmod(0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_config: Config) -> Job:
    """The archive, in a folder with a space and letters beyond ASCII."""
    root = tmp_path_factory.mktemp("bad") / "Été 1"
    write_archive(root / "bids")
    return Job(str(root / "bids"), str(root / "out"), str(tiny_bundle), tiny_config)


def files(folder: Path) -> list[str]:
    """Names of all files below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_bad_file_is_a_row_with_its_reason_and_the_good_one_is_done(job: Job) -> None:
    counts = harmonize(job)
    rows = {row["image_id"]: row for row in current_rows(job.out)}
    assert counts == {"done": 1, "failed": len(REASONS)}, rows
    assert rows.pop(GOOD)["status"] == "done"
    assert rows.keys() == REASONS.keys()
    for name, row in rows.items():
        text = problem_of(row).text
        assert re.search(REASONS[name], text), (name, text)
        assert re.search(r".; expected .+\. [A-Z].+\.$", text), (name, text)
    written = [name for name in files(Path(job.out)) if name.startswith("sub-")]
    assert len(written) == 4  # image, sidecar, two pictures
    assert all(name.startswith("sub-01/") for name in written)
    assert not [name for name in files(Path(job.out)) if ".partial-" in name]


def test_an_output_that_is_a_file_is_an_error_and_stays(job: Job, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="expected a folder that can be written to"):
        harmonize(replace(job, out=str(tmp_path / "out")))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_is_read_only_is_an_error(job: Job, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied; expected a folder that can be written to"):
        harmonize(replace(job, out=str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB; skips the test if it cannot be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_disk_that_fills_up_fails_the_image_and_leaves_nothing_half_written(job: Job, small_disk: Path) -> None:
    with contextlib.suppress(DataError):  # the ledger may not fit on the disk either
        harmonize(replace(job, out=str(small_disk), participants=("01",)))
    row = {row["image_id"]: row for row in current_rows(small_disk)}[GOOD]
    assert row["status"] == "failed"
    assert "No space left on device; expected room for the whole of it. Free some" in problem_of(row).text
    assert not [name for name in files(small_disk) if name.startswith("sub-")]
