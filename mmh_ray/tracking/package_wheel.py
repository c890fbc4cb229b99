"""This package as a wheel, to lie with a model: so the model can be installed where no index has this package."""

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
_WRITTEN = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the wheel, so that equal code gives equal bytes."""
_PACKED_ALREADY = (".safetensors", ".gz", ".png")
"""Files that do not become smaller."""


def build_wheel(folder: str | Path) -> Path:
    """Write the wheel of the running code into a folder and return its path.

    It is made from the files of the package, not by a build tool: an installed package has no source tree, and a
    cluster may reach no index.
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
            entry = zipfile.ZipInfo(name, _WRITTEN)
            entry.external_attr = 0o100644 << 16  # a regular file that everybody may read
            packing = zipfile.ZIP_STORED if name.endswith(_PACKED_ALREADY) else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, packing)
    return wheel


def _metadata(package: Path) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {DISTRIBUTION}", f"Version: {mmh_ray.__version__}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in _requirements(package)]
    return "\n".join(lines) + "\n"


def _requirements(package: Path) -> list[str]:
    """What the package needs: by its checkout, else as it was installed."""
    project = package.parent / "pyproject.toml"
    if project.is_file():
        description = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if description.get("name") == DISTRIBUTION:
            return list(description["dependencies"])
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        log.warning("%s is not installed: the wheel that lies with the model names no requirements", DISTRIBUTION)
        return []
    return [requirement for requirement in required if "extra ==" not in requirement]


def _record_line(name: str, content: bytes) -> str:
    """Name, hash and size of a file, as pip checks them."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(content)}\n"
