"""Hashes do not depend on order; files are whole or absent."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from mmh_ray import __version__
from mmh_ray.errors import DataError
from mmh_ray.provenance import check_place, code_version, hash_of, remove_partial, sha256_file, whole_file, write_json

pytestmark = pytest.mark.fast


def test_whole_file_appears_complete_with_ordinary_permissions(tmp_path: Path) -> None:
    path, ordinary = tmp_path / "new" / "image.nii.gz", tmp_path / "ordinary"
    with whole_file(path) as partial:
        assert partial.parent == path.parent
        assert partial.name.endswith(".nii.gz")
        partial.write_bytes(b"voxels")
        assert not path.exists()
    ordinary.touch()
    assert path.read_bytes() == b"voxels"
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_whole_file_leaves_nothing_behind_on_error(tmp_path: Path) -> None:
    def write_half() -> None:
        with whole_file(tmp_path / "image.nii") as partial:
            partial.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_whole_file_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_json(path, {"version": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"version": float("nan")})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_half_written_files_are_removed(tmp_path: Path) -> None:
    folder, whole = tmp_path / ".partial-x", tmp_path / "sub-01/image.nii.gz"
    for path in (folder / "kept", whole, whole.with_name(".partial-abc.nii.gz")):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_partial(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [folder / "kept", whole]


def test_half_written_files_elsewhere_are_left_alone(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "sub-01", elsewhere / "deep"):
        folder.mkdir(parents=True)
    left = [elsewhere / ".partial-a", elsewhere / "deep/.partial-b"]
    for path in left:
        path.touch()
    (root / "sub-01/link").symlink_to(elsewhere)
    (root / ".partial-link").symlink_to(left[0])
    (root / ".partial-folder").symlink_to(elsewhere)
    remove_partial(root)
    assert all(path.exists() for path in left)
    assert sorted(path.name for path in root.iterdir()) == ["sub-01"]


def test_a_place_is_where_the_links_on_the_way_lead_to(tmp_path: Path) -> None:
    root = tmp_path / "link to root"
    (tmp_path / "root/real").mkdir(parents=True)
    root.symlink_to(tmp_path / "root")
    (root / "inside").symlink_to("real")
    (root / "outside").symlink_to("..")
    (root / "file").symlink_to("/etc/passwd")
    for good in ("file", "new/deep/file", "real/file", "inside/file"):
        check_place(root / good, root)
    for bad in ("outside/file", "outside/other/file", "real/../../file", "file/x"):
        with pytest.raises(DataError, match="expected a place inside that folder"):
            check_place(root / bad, root)


def test_hash_of_ignores_the_order_of_keys_only() -> None:
    assert hash_of({"a": 1, "b": {"c": 2, "d": 3}}) == hash_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert hash_of([1, 2]) != hash_of([2, 1])
    assert hash_of({"a": 1}) != hash_of({"a": 2})


def test_sha256_file_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    assert sha256_file(path) == hashlib.sha256(b"abc").hexdigest()


def test_code_version_starts_with_the_package_version() -> None:
    assert code_version().startswith(__version__.partition("+")[0])
