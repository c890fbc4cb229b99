"""SIGTERM and Ctrl-C at any moment of any command that starts Ray: exit code 130, and no process stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from mmh_ray.bids.ledger import JOURNAL
from mmh_ray.bids.status import run_status
from mmh_ray.config import Config, to_dict
from mmh_ray.imaging.volume import Volume, write_volume
from mmh_ray.stopping import INTERRUPTED, STOPPED, end_reason, handlers_kept, raise_if_stopped, stoppable

PATIENCE_S = 300
MARK = "MMH_TEST_STOPPED"
SCANS = 40


@dataclass
class Command:
    """A running command, whose processes all carry its mark in their environment."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path

    def processes(self) -> list[psutil.Process]:
        """Every process of the command, whosoever's child it is by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait_until(self, reached: Callable[[Command], object]) -> None:
        """Until something is there while the command still runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not reached(self):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def stop(self, number: signal.Signals) -> int:
        """Send a signal to the command alone; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE_S)


def listens(command: Command) -> bool:
    """Whether the command handles SIGTERM, as it does as soon as it knows what to do; Ray has not started then."""
    for line in Path(f"/proc/{command.process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def is_starting_ray(command: Command) -> bool:
    """Whether the first process of Ray is there."""
    return any("gcs_server" in process.name() for process in psutil.Process(command.process.pid).children())


def has_ray(command: Command) -> bool:
    """Whether Ray is there whole."""
    return "Ray: " in command.log.read_text()


def works(command: Command) -> bool:
    """Whether an image is done: the journal of `out` beside the log has a row."""
    journal = command.log.with_name("out") / JOURNAL
    return journal.exists() and journal.stat().st_size > 0


MOMENTS = [listens, is_starting_ray, has_ray]


def _hear_ctrl_c() -> None:
    """A suite that runs in the background of a shell ignores it, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def _in_the_foreground() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as in a command that runs in the foreground of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts `mmh` in a process of its own."""
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        log = tmp_path / f"command-{len(started)}.log"
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {MARK: mark}
        with open(log, "wb") as stream:
            command = [sys.executable, "-m", "mmh_ray.cli", *arguments]
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                preexec_fn=_hear_ctrl_c,
            )
        started.append(Command(process, mark, log))
        return started[-1]

    yield start
    for command in started:
        for process in command.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        command.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory, plain_scan: Volume) -> Path:
    """An archive whose images take a while."""
    root = tmp_path_factory.mktemp("stopped") / "bids"
    for number in range(SCANS):
        write_volume(plain_scan, root / f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz")
    return root


def check_nothing_is_left(command: Command) -> None:
    """Ray's processes end at once when the command does; the kernel takes a moment for it."""
    deadline = time.monotonic() + 30
    while left := command.processes():
        assert time.monotonic() < deadline, [process.cmdline()[:2] for process in left]
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_command_ends_with_130_at_ctrl_c(
    run: Callable[..., Command], moment: Callable[[Command], bool], tmp_path: Path
) -> None:
    command = run("phantom", str(tmp_path / "phantom"), "phantom.spacing_mm=3", "phantom.subjects_per_site=50")
    command.wait_until(moment)
    assert command.stop(signal.SIGINT) == 130, command.log.read_text()
    assert "Traceback" not in command.log.read_text()
    check_nothing_is_left(command)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("moment", [*MOMENTS, works], ids=lambda moment: moment.__name__)
def test_a_run_ends_with_130_at_sigterm_and_leaves_ledger_and_report(
    run: Callable[..., Command],
    moment: Callable[[Command], bool],
    bids: Path,
    tiny_bundle: Path,
    tiny_config: Config,
    tmp_path: Path,
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(tiny_config)))
    out = tmp_path / "out"
    given = ("--model", str(tiny_bundle), "--config", str(tmp_path / "config.yaml"))
    command = run("harmonize", str(bids), str(out), *given)
    command.wait_until(moment)
    assert command.stop(signal.SIGTERM) == 130, command.log.read_text()
    assert "Traceback" not in command.log.read_text()
    check_nothing_is_left(command)
    if moment is listens:
        return  # it had not looked at its folder yet
    assert run_status(out).record.failure == STOPPED
    assert STOPPED in (out / "report.html").read_text()
    assert not (out / ".ledger.jsonl").exists()
    assert not list(out.rglob(".partial-*"))


@pytest.mark.fast
def test_handlers_that_were_replaced_are_put_back() -> None:
    def other(*_: object) -> None:
        raise SystemExit(0)

    @handlers_kept()
    def replaces_them() -> None:
        signal.signal(signal.SIGTERM, other)
        signal.signal(signal.SIGINT, other)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        replaces_them()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.fast
def test_what_stopped_a_run_is_known_though_the_error_lost_its_words() -> None:
    """Ray raises a KeyboardInterrupt of its own where a signal comes while it waits."""

    @stoppable()
    def wait_as_ray_does() -> str:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            return end_reason(KeyboardInterrupt())
        return "not stopped"

    assert wait_as_ray_does() == STOPPED
    with stoppable():
        assert end_reason(KeyboardInterrupt()) == INTERRUPTED
        assert end_reason(OSError("full")) == "OSError: full"


@pytest.mark.fast
@pytest.mark.usefixtures("_in_the_foreground")
@pytest.mark.parametrize(("number", "words"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, STOPPED)])
def test_a_signal_that_an_import_swallowed_is_not_forgotten(number: signal.Signals, words: str) -> None:
    before = signal.getsignal(number)
    with stoppable():
        raise_if_stopped()  # nothing came yet
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt, match=words):
            raise_if_stopped()
    assert signal.getsignal(number) == before
    with stoppable():
        raise_if_stopped()  # another command of the process


@pytest.mark.fast
def test_a_second_sigterm_does_not_disturb_the_clearing_up() -> None:
    cleared = []

    @stoppable()
    def work() -> None:
        try:
            with stoppable():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleared.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        work()
    assert cleared
    assert signal.getsignal(signal.SIGTERM) == before
