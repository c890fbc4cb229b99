"""Builds a wheel of this package to store with a model, so that the model can be installed without a package index."""

from __future__ import annotations

import base64
import hashlib
import logging
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import mmh_ray

log = logging.getLogger(__name__)

DISTRIBUTION = "mmh-ray"
_FILE_TIME = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the wheel, so that equal code gives equal bytes."""
_INCOMPRESSIBLE = (".safetensors", ".gz", ".png")
"""Endings of files that do not become smaller."""


def build_wheel(folder: str | Path) -> Path:
    """Write the wheel of the running code into a folder and return its path.

    The wheel is made from the package's files, without a build tool: an installed package has no source tree, and a
    cluster may have no access to an index.
    """
    package = Path(mmh_ray.__file__).parent
    stem = f"mmh_ray-{mmh_ray.__version__}"
    wheel = Path(folder, f"{stem}-py3-none-any.whl")
    information = f"{stem}.dist-info"
    files: dict[str, bytes] = {}
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[f"mmh_ray/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    files[f"{information}/METADATA"] = _metadata(package).encode()
    files[f"{information}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: mmh-ray\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{information}/entry_points.txt"] = b"[console_scripts]\nmmh = mmh_ray.cli:run\n"
    record = f"{information}/RECORD"
    lines = [_record_line(name, content) for name, content in files.items()]
    files[record] = "".join([*lines, f"{record},,\n"]).encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _FILE_TIME)
            entry.external_attr = 0o100644 << 16  # a regular file, readable for all
            compression = zipfile.ZIP_STORED if name.endswith(_INCOMPRESSIBLE) else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, compression)
    return wheel


def _metadata(package: Path) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {DISTRIBUTION}", f"Version: {mmh_ray.__version__}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in _requirements(package)]
    return "\n".join(lines) + "\n"


def _requirements(package: Path) -> list[str]:
    """Requirements of the package, from pyproject.toml in a checkout, else from the installed metadata."""
    project = package.parent / "pyproject.toml"
    if project.is_file():
        description = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if description.get("name") == DISTRIBUTION:
            return list(description["dependencies"])
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        log.warning("%s is not installed: the wheel that is stored with the model has no requirements", DISTRIBUTION)
        return []
    return [requirement for requirement in required if "extra ==" not in requirement]


def _record_line(name: str, content: bytes) -> str:
    """A line of RECORD: name, hash and size of a file, which pip checks."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(content)}\n"
