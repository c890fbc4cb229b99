"""Objects are copied to local files while they are read. Uses a real S3 server (moto) on the loopback."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mmh_ray import staging
from mmh_ray.errors import DataError, MaskError
from mmh_ray.files import UnusableFileError, read_bytes
from mmh_ray.object_store import MissingObjectError
from mmh_ray.staging import size_of, staged, staged_scan, state_of, uploaded
from tests.s3_files import BUCKET, content, keys

pytestmark = pytest.mark.slow

SCAN = "s3://bucket/bids/sub-01_T1w.nii.gz"
MASK = "s3://bucket/masks/sub-01_T1w.nii.gz"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This node's temporary folder, which must be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def objects(s3: Any) -> None:
    """A scan and a mask of the same name."""
    s3.put_object(Bucket=BUCKET, Key="bids/sub-01_T1w.nii.gz", Body=b"scan")
    s3.put_object(Bucket=BUCKET, Key="masks/sub-01_T1w.nii.gz", Body=b"mask")


def test_files_keep_their_names_and_do_not_stay(objects: None, temporary: Path) -> None:
    with staged_scan(SCAN, MASK) as (scan, mask):
        assert mask is not None
        assert (Path(scan).name, Path(mask).name) == ("sub-01_T1w.nii.gz", "sub-01_T1w.nii.gz")
        assert (read_bytes(scan), read_bytes(mask)) == (b"scan", b"mask")
    with staged_scan(SCAN, None) as (scan, mask):
        assert mask is None
    assert list(temporary.iterdir()) == []


def test_what_is_local_stays_where_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "scan.nii")
    with staged(path) as (here,):
        assert here == path
    with uploaded(path) as folder:
        assert folder == path


def test_errors_name_the_object(objects: None, temporary: Path) -> None:
    def fail(mask: str | None) -> None:
        raise MaskError(f"{mask}: empty mask", "voxels", "Make it again.")

    with pytest.raises(MaskError, match=f"^{MASK}: empty mask; expected voxels"), staged_scan(SCAN, MASK) as (_, mask):
        fail(mask)
    with pytest.raises(UnusableFileError) as caught, staged(SCAN) as (path,):
        read_bytes(path, 1)
    assert caught.value.filename == SCAN
    assert list(temporary.iterdir()) == []


def test_what_is_not_there_says_so(objects: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingObjectError, match=r"s3://bucket/absent.nii: no such object; expected an object"):
        staged("s3://bucket/absent.nii").__enter__()
    assert (size_of(SCAN), size_of("s3://bucket/absent.nii")) == (4, None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=f"{SCAN}: .*connect.*AWS_ENDPOINT_URL"):
        staged(SCAN).__enter__()


def test_a_folder_is_uploaded_only_if_all_went_well(s3: Any, temporary: Path) -> None:
    with uploaded("s3://bucket/evaluation") as folder:
        Path(folder, "figures").mkdir()
        Path(folder, "figures/one.png").write_bytes(b"picture")
        assert keys(s3, "evaluation") == set()
    assert content(s3, "evaluation/figures/one.png") == b"picture"
    with pytest.raises(FileNotFoundError), uploaded("s3://bucket/failed") as folder:
        Path(folder, "half").rename(Path(folder, "whole"))
    assert keys(s3, "failed") == set()
    assert list(temporary.iterdir()) == []


def test_the_state_of_a_file_differs_after_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after one that keeps its size and sets its time back."""
    path = tmp_path / "scan.nii"
    path.write_bytes(b"one")
    written = path.stat()
    assert state_of(str(path)) is None  # it may be written to again before the clock ticks
    monkeypatch.setattr(staging, "SETTLED_S", -1)
    states = [state_of(str(path)), state_of(str(path))]
    path.write_bytes(b"two")
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    states.append(state_of(str(path)))
    other = tmp_path / "other.nii"
    other.write_bytes(b"six")
    other.replace(path)
    states.append(state_of(str(path)))
    first, again, *changed = states
    assert first == again is not None
    assert len({first, *changed}) == 3
    assert state_of(str(other)) is None


def test_the_state_of_an_object_is_its_size_and_time(objects: None, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_of(SCAN) is None
    assert state_of("s3://bucket/absent.nii") is None
    monkeypatch.setattr(staging, "SETTLED_S", -1)
    before = state_of(SCAN)
    assert before == state_of(SCAN) is not None
    assert state_of("s3://bucket/absent.nii") is None
    s3.put_object(Bucket=BUCKET, Key="bids/sub-01_T1w.nii.gz", Body=b"other")
    assert state_of(SCAN) not in (before, None)
