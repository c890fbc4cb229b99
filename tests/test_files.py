"""Only regular files are opened, and reading is limited."""

import os
import socket

import pytest

from mmh_ray.files import UnusableFileError, irregular, is_inside, open_regular, read_bytes, read_object

pytestmark = pytest.mark.fast


@pytest.fixture
def special(tmp_path, request):
    """A path to something that is not a regular file."""
    path = tmp_path / request.param
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "zeros":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            yield path
            return
    yield path


@pytest.mark.parametrize("special", ["pipe", "folder", "zeros", "socket"], indirect=True)
def test_special_files_are_refused_at_once(special):
    with pytest.raises(UnusableFileError, match="not a regular file"):
        open_regular(special)


@pytest.mark.parametrize(
    ("special", "what"),
    [("pipe", "a named pipe"), ("folder", "a folder"), ("zeros", "a device"), ("socket", "a socket")],
    indirect=["special"],
)
def test_the_type_of_a_special_file_is_reported_without_opening_it(special, what):
    assert irregular(special) == what


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"here")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("absent")
    (tmp_path / "loop").symlink_to("loop")
    assert read_bytes(tmp_path / "link") == b"here"
    assert irregular(tmp_path / "link") is None
    assert irregular(tmp_path / "broken") == "a broken link"
    assert irregular(tmp_path / "absent") == "no file"
    assert "symbolic links" in irregular(tmp_path / "loop")


def test_pairs_of_an_object_can_be_looked_at(tmp_path):
    (tmp_path / "file.json").write_text('{"a": 1, "a": 2}')
    assert read_object(tmp_path / "file.json") == {"a": 2}
    assert read_object(tmp_path / "file.json", pairs=lambda pairs: {"pairs": pairs}) == {"pairs": [("a", 1), ("a", 2)]}


def test_no_more_is_read_than_allowed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_bytes(path, most=10) == b"x" * 10
    with pytest.raises(UnusableFileError, match="larger than"):
        read_bytes(path, most=9)


@pytest.mark.parametrize("content", [b"[1]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"a": ' * 50_000])
def test_what_is_no_object_is_a_value_error(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r".+"):
        read_object(path)


def test_inside_means_after_links(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "away").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    assert is_inside(folder / "sub-01" / "new.nii", folder)
    assert not is_inside(folder / "away" / "new.nii", folder)
    assert not is_inside(folder / ".." / "new.nii", folder)
