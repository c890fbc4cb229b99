"""Checks what mmh_ray needs of this machine (`mmh doctor`); the output is meant for bug reports.

A check never raises: an error in it becomes its finding.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from mmh_ray.config import TrackingConfig
from mmh_ray.provenance import code_version
from mmh_ray.shipped_weights import read_weights

PACKAGES = ("torch", "ray", "mlflow", "diffusers", "SimpleITK", "nibabel", "numpy", "pyarrow")
"""Packages whose version is shown."""
RAY_PATIENCE_S = 90.0
"""Seconds that Ray may take to start: a busy laptop needs about twenty."""
TRACKING_PATIENCE_S = 3.0
"""Seconds that a tracking server may take to answer."""
LEAST_DISK = 1e9
"""Free bytes that Ray needs in the temporary folder."""
LITTLE_DISK = 10e9
LITTLE_SHARED_MEMORY = 2e9
"""Free bytes below which the state is `note`: large archives need more."""
SHARED_MEMORY = Path("/dev/shm")
_GB = 1e9
_NAME_WIDTH = 16
"""Characters of the longest check name: lines are printed one by one and must still be aligned."""
_START_RAY = "from mmh_ray.distributed.cluster import connect, disconnect; connect(); disconnect()"

State = Literal["ok", "note", "broken"]
Outcome = tuple[State, str]
"""State and text of a :class:`Finding`."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    name:
        What was checked.
    state:
        ``ok``; ``note``: worth knowing, but not needed by every command; ``broken``: some command cannot work.
    text:
        The result, with the remedy where there is one.
    """

    name: str
    state: State
    text: str

    def as_line(self) -> str:
        """The finding as one line."""
        return f"{self.state:<6} {self.name:<{_NAME_WIDTH}}  {self.text}"


def examine(tracking: TrackingConfig) -> Iterator[Finding]:
    """Run every check in turn and yield its finding; starting Ray takes most of the time."""
    checks: dict[str, Callable[[], Outcome]] = {"mmh_ray": _software, "Python": _python, "machine": _machine}
    for package in PACKAGES:
        checks[package] = partial(_package, package)
    checks |= {
        "GPU": _gpu,
        "shared memory": _shared_memory,
        "temporary folder": _temporary_folder,
        "model mmh-base": _base_model,
        "style weights": partial(_shipped_weights, "mmh_ray.models", "style.safetensors"),
        "brain weights": partial(_shipped_weights, "mmh_ray.imaging", "brain.safetensors"),
        "tracking": partial(_tracking, tracking),
        "Ray start-up": _ray_starts,
    }
    for name, check in checks.items():
        yield _run(name, check)


def _run(name: str, check: Callable[[], Outcome]) -> Finding:
    try:
        state, text = check()
        return Finding(name, state, text)
    except Exception as error:  # the other checks must still run
        return Finding(name, "broken", f"{type(error).__name__}: {error}")


def is_healthy(findings: list[Finding]) -> bool:
    """Whether nothing is broken."""
    return all(finding.state != "broken" for finding in findings)


def verdict(findings: list[Finding]) -> str:
    """The overall result, in one line."""
    broken = [finding.name for finding in findings if finding.state == "broken"]
    return f"broken: {', '.join(broken)}" if broken else "all that is needed works"


def as_json(findings: list[Finding]) -> dict[str, object]:
    """The findings for programs: ``healthy``, and ``checks``, which maps names to ``state`` and ``text``."""
    checks = {}
    for finding in findings:
        checks[finding.name] = {"state": finding.state, "text": finding.text}
    return {"healthy": is_healthy(findings), "checks": checks}


def _software() -> Outcome:
    return "ok", code_version()


def _python() -> Outcome:
    return "ok", f"{platform.python_version()}, {sys.executable}"


def _machine() -> Outcome:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{platform.platform()}; {os.cpu_count()} CPUs; {memory.total / _GB:.0f} GB memory, "
    return "ok", f"{text}{memory.available / _GB:.0f} GB of it free"


def _package(name: str) -> Outcome:
    try:
        return "ok", metadata.version(name)
    except metadata.PackageNotFoundError:
        return "broken", "not installed; run `pip install .` again in the folder of mmh_ray"


def _gpu() -> Outcome:
    import torch

    if not torch.cuda.is_available():
        return "note", "none that PyTorch can use; everything works without one, only slower"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return "ok", ", ".join(names)


def _shared_memory() -> Outcome:
    if not SHARED_MEMORY.is_dir():
        return "note", f"no {SHARED_MEMORY} on this system; Ray uses the temporary folder"
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{usage.free / _GB:.1f} of {usage.total / _GB:.1f} GB free in {SHARED_MEMORY}"
    if usage.free < LITTLE_SHARED_MEMORY:
        return "note", f"{text}; Ray will be slow. In a container, use --shm-size=4g or more"
    return "ok", text


def _temporary_folder() -> Outcome:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / _GB:.1f} GB free in {folder}"
    if usage.free < LEAST_DISK:
        return "broken", f"{text}; free some space, or set TMPDIR to another folder"
    if usage.free < LITTLE_DISK:
        return "note", f"{text}; a large archive may need more"
    return "ok", text


def _base_model() -> Outcome:
    from mmh_ray.models.bundle import load_bundle
    from mmh_ray.models.shipped import BASE_MODEL, shipped_bundle

    folder = shipped_bundle(BASE_MODEL)
    assert folder is not None, "the package has a model of that name"
    bundle = load_bundle(folder)  # compares the checksum of the weights
    return "ok", f"{', '.join(bundle.config.model.sequences)}; hash {bundle.hash[:12]}"


def _shipped_weights(package: str, file: str) -> Outcome:
    path = str(resources.files(package) / "weights" / file)
    content = read_weights(Path(path))  # compares the checksum with the card's
    return "ok", f"hash {hashlib.sha256(content).hexdigest()[:12]}"


def _tracking(tracking: TrackingConfig) -> Outcome:
    from mmh_ray.tracking.store import choose_uri, sqlite_file

    uri = choose_uri(tracking)
    shown = _without_password(uri)
    database = sqlite_file(uri)
    if database is not None:
        return _database(database, shown)
    if urlsplit(uri).scheme in ("http", "https"):
        return _server(uri, shown)
    return "note", f"{shown}: not checked; only servers (http) and SQLite files are"


def _database(database: Path, shown: str) -> Outcome:
    exists = database.exists()
    if exists and not os.access(database, os.R_OK | os.W_OK):
        return "broken", f"{shown}: cannot be read and written; change its permissions"
    if not os.access(database.parent, os.W_OK | os.X_OK):
        return "broken", f"{shown}: its folder is missing or cannot be written to"
    state = "exists" if exists else "will be created when needed"
    return "ok", f"{shown} {state}"


def _server(uri: str, shown: str) -> Outcome:
    is_local = urlsplit(uri).hostname in ("localhost", "127.0.0.1", "::1")
    opener = build_opener(*([ProxyHandler({})] if is_local else []))
    try:
        with opener.open(f"{uri.rstrip('/')}/health", timeout=TRACKING_PATIENCE_S):
            return "ok", f"{shown} answers"
    except HTTPError as error:
        if error.code in (401, 403):
            text = f"{shown} answers, but asks for a password (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD)"
            return "note", text
        return "broken", f"{shown} answers with status {error.code}; is it an MLflow server?"
    except OSError as error:  # URLError, timeouts and reset connections, too
        text = f"{shown}: no answer within {TRACKING_PATIENCE_S:g} s ({error}); start it or change MLFLOW_TRACKING_URI"
        return "broken", text


def _without_password(uri: str) -> str:
    """The URI without user name and password, for bug reports."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def _ray_starts() -> Outcome:
    """Start Ray in a separate process, so that a crash or a hang of Ray affects nothing else."""
    command = [sys.executable, "-c", _START_RAY]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, complaint = process.communicate(timeout=RAY_PATIENCE_S)
    except subprocess.TimeoutExpired:
        _end(process)
        return "broken", f"did not start within {RAY_PATIENCE_S:g} s; stop other programs and try again"
    if process.returncode == 0:
        address = os.environ.get("RAY_ADDRESS")
        return "ok", f"joined the cluster at {address}" if address else "started and stopped"
    lines = complaint.strip().splitlines() or [f"ended with code {process.returncode}"]
    return "broken", lines[-1].removeprefix("mmh_ray.errors.ConfigError: ")


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all other processes of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
            return
