"""Who may import whom, read from the source: imports inside functions count as much as those at the top."""

from __future__ import annotations

import ast
import functools
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmh_ray"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")])

LEAVES = {
    "",
    "config",
    "diffusers_import",
    "errors",
    "files",
    "html_page",
    "object_store",
    "progress",
    "provenance",
    "shipped_weights",
    "staging",
    "stopping",
    "tables",
    "threads",
    "training",
    "yaml_text",
}  # "" is mmh_ray itself, for its version
CORE = {
    *LEAVES,
    "bids",
    "imaging",
    "simulation",
    "models",
    "evaluation",
    "quality",
    "harmonization",
    "shards",
    "tracking",
}
MAY_USE = {
    **dict.fromkeys(LEAVES, LEAVES),
    "": {*LEAVES, "harmonization", "quality"},  # when `mmh_ray.load` or `mmh_ray.compare` is asked for
    "bids": {*LEAVES, "bids"},
    "imaging": {*LEAVES, "imaging"},
    "shards": {*LEAVES, "bids"},  # the type of its rows
    "simulation": {*LEAVES, "imaging", "simulation"},
    "models": {*LEAVES, "imaging", "simulation", "models"},
    "evaluation": {*LEAVES, "bids", "imaging", "evaluation"},
    "quality": {*LEAVES, "bids", "imaging", "evaluation", "quality"},
    "harmonization": {*LEAVES, "bids", "imaging", "models", "quality", "tracking", "harmonization"},
    "tracking": CORE,
    "distributed": {*CORE, "distributed"},
    "doctor": {*LEAVES, "models", "tracking"},
    "cli": {*CORE, "distributed", "demo", "doctor", "cli"},
    "demo": {*CORE, "distributed"},
    "jobs": {"cli"},
}
ONLY_IN = {"ray": {"distributed"}, "mlflow": {"tracking"}}
NOT_IN = {"bids": {"torch"}}


def room_of(path: Path) -> str:
    """`mmh_ray/bids/manifest.py` is in room `bids`, `mmh_ray/demo.py` is room `demo`, `jobs/*.py` are room `jobs`."""
    if not path.is_relative_to(PACKAGE):
        return "jobs"
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    """Dotted names of everything a file imports; `from a import b` gives `a.b`."""
    return frozenset(_read_imports(path))


def _read_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*_package_of(path, node.level), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _package_of(path: Path, level: int) -> tuple[str, ...]:
    """The package that a relative import of this many dots starts from; nothing for an absolute one."""
    return path.parent.relative_to(ROOT).parts[: len(path.relative_to(ROOT).parts) - level] if level else ()


def room_named(imported: str) -> str | None:
    """The room that an imported name lies in; None outside the package."""
    parts = imported.split(".")
    if parts[0] != "mmh_ray":
        return None
    is_room = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists())
    return parts[1] if is_room else ""


def test_every_room_has_a_rule() -> None:
    assert {room_of(path) for path in SOURCES} <= set(MAY_USE)


def test_rooms_use_only_what_they_may() -> None:
    forbidden = {}
    for path in SOURCES:
        used = {room_named(name) for name in imports_of(path)} - {None}
        forbidden[str(path)] = used - MAY_USE[room_of(path)]
    assert {path: rooms for path, rooms in forbidden.items() if rooms} == {}


def test_heavy_packages_stay_in_their_rooms() -> None:
    forbidden = {}
    for path in SOURCES:
        room = room_of(path)
        kept_out = {package for package, rooms in ONLY_IN.items() if room not in rooms} | NOT_IN.get(room, set())
        packages = {name.split(".")[0] for name in imports_of(path)}
        forbidden[str(path)] = packages & kept_out
    assert {path: packages for path, packages in forbidden.items() if packages} == {}


def test_the_reader_of_imports_sees_all_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "mmh_ray" / "models" / "net.py"
    path.parent.mkdir(parents=True)
    path.write_text("import ray.data\nfrom ..bids import x\nfrom . import y\ndef f():\n    from mmh_ray import demo\n")
    assert imports_of(path) == {"ray.data", "mmh_ray.bids.x", "mmh_ray.models.y", "mmh_ray.demo"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mmh_ray, mmh_ray.cli; print(*sorted({'ray', 'mlflow', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_takes_less_than_a_second_of_processor_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "mmh_ray.cli", "--help"], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
