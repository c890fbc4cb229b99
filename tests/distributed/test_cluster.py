"""Joining and starting Ray where the environment is in the way: dead and wrong addresses, a TMPDIR of batch systems."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmh_ray.distributed import session_folder
from mmh_ray.distributed.address import check_address, given_address
from mmh_ray.distributed.session_folder import session_options
from mmh_ray.errors import ConfigError

QUICK_S = 0.5


@pytest.fixture
def port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(params=["silent", "speaks http"])
def something_else(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that is not Ray."""
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(socket.create_server(("127.0.0.1", 0)))

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # the test has ended
                    return
                open_sockets.enter_context(connection)
                if request.param == "speaks http":
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        server.join(10)


@pytest.mark.fast
@pytest.mark.parametrize(("said", "meant"), [(None, None), ("", None), ("  ", None), ("local", None), ("auto", "auto")])
def test_an_address_that_names_no_cluster_means_this_machine(
    said: str | None, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if said is not None:
        monkeypatch.setenv("RAY_ADDRESS", said)
    assert given_address() == meant


@pytest.mark.fast
@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.0.0.1:",
        ":6379",
        "127.0.0.1:abc",
        "127.0.0.1:0",
        "127.0.0.1:70000",
        "127.0.0.1:-1",
        "::1",
        "a b:6379",
        "ray://",
        "ray://127.0.0.1",
        "http://127.0.0.1:8265",
        "https://127.0.0.1:8265",
        "redis://127.0.0.1:6379",
        "os.system://127.0.0.1:1",
        "127.0.0.1:6379/path",
        "\x00:1",
    ],
)
def test_a_malformed_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=r"[uU]nset RAY_ADDRESS") as caught:
        check_address(address)
    assert repr(address).strip("'") in repr(str(caught.value))


@pytest.mark.fast
@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}", "[::1]:{}"])
@pytest.mark.parametrize("tls", [False, True])
def test_where_nobody_listens_is_said_soon(address: str, tls: bool, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", str(int(tls)))
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"no Ray answers there within 0\.5 s; expected the address of a running Ray"):
        check_address(address.format(port), QUICK_S)
    assert time.monotonic() - start < 10 * QUICK_S


@pytest.mark.fast
def test_what_is_not_ray_is_told_from_it(something_else: int) -> None:
    with pytest.raises(ConfigError, match="no Ray answers there"):
        check_address(f"127.0.0.1:{something_else}", QUICK_S)


@pytest.mark.ray
def test_a_running_cluster_answers(ray_cluster: None) -> None:
    import ray

    check_address(ray.get_runtime_context().gcs_address)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`mmh` in a process of its own with a changed environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR")}
    line = [sys.executable, "-m", "mmh_ray.cli", *arguments]
    return subprocess.run(line, env=kept | environment, capture_output=True, text=True, timeout=300, check=False)


PHANTOM = ("phantom.spacing_mm=8", "phantom.sites=1", "phantom.subjects_per_site=1", "phantom.travelers=0")


@pytest.mark.slow
@pytest.mark.ray
def test_a_dead_address_ends_a_command_with_2(port: int, tmp_path: Path) -> None:
    start = time.monotonic()
    done = command("phantom", str(tmp_path / "out"), *PHANTOM, RAY_ADDRESS=f"127.0.0.1:{port}")
    assert done.returncode == 2, done.stderr
    assert f"RAY_ADDRESS=127.0.0.1:{port}: no Ray answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 60


def ours() -> set[Path]:
    """Folders that stand in for Ray's own."""
    return {path for place in session_folder.SHORT for path in Path(place).glob("mmh-ray-*")}


@pytest.mark.slow
@pytest.mark.ray
def test_a_tmpdir_that_will_not_do_costs_only_a_line(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    before = ours()
    done = command("phantom", str(tmp_path / "out"), *PHANTOM, TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert f"temporary folder {folder} is too long or not ASCII, or cannot be written to: Ray's sockets" in done.stderr
    assert (tmp_path / "out/participants.tsv").is_file()
    assert ours() <= before
    assert list(folder.iterdir()) == []


@pytest.mark.fast
@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("place", ["relative", "", "/nowhere", "/" + "x" * 120, "/dev/null", "/proc", "/tmp/一時"])
def test_a_private_folder_stands_in_for_an_unusable_one(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, place)
    monkeypatch.setattr(session_folder, "SHORT", (str(tmp_path / "not there"), str(tmp_path)))
    monkeypatch.setattr("atexit.register", lambda *_: None)
    options = session_options()
    folder = Path(options["_temp_dir"])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "object_spilling_directory" not in options
    assert f"temporary folder {place} is too long or not ASCII, or cannot be written to: Ray's sockets" in caplog.text


@pytest.mark.fast
def test_the_usual_folder_is_left_to_ray_unless_its_own_folder_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        assert session_options() == {}
        Path(folder, "ray").touch()  # as another user's, which cannot be entered
        monkeypatch.setattr("atexit.register", lambda *_: None)
        monkeypatch.setattr(session_folder, "SHORT", (folder,))
        assert Path(session_options()["_temp_dir"]).parent == Path(folder)


@pytest.mark.fast
def test_without_any_short_folder_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 120)))
    monkeypatch.setattr(session_folder, "SHORT", (str(tmp_path / "not there"),))
    with pytest.raises(ConfigError, match=r"at most 3\d ASCII characters\. .*export RAY_TMPDIR=/short/path"):
        session_options()
