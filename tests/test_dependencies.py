"""Requirements of pyproject.toml: installed here, and with lower bounds above versions with known vulnerabilities."""

from __future__ import annotations

import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.fast

FIXED = {
    "diffusers": ("0.38.0", "CVE-2026-44513 and CVE-2026-45804: code of strangers despite trust_remote_code=False"),
    "jinja2": (
        "3.1.6",
        "CVE-2024-22195, CVE-2024-34064, CVE-2024-56201, CVE-2024-56326, CVE-2025-27516: sandbox and attributes",
    ),
    "mlflow": (
        "3.16.0",
        "CVE-2026-2614, CVE-2026-2651, CVE-2026-4137, CVE-2026-71211: files, artifacts, temporary folders, gateway",
    ),
    "pillow": ("13.0.0", "CVE-2026-96639, CVE-2026-112403 and the JPEG decoder's and TIFF encoder's buffer overflows"),
    "pyarrow": ("23.0.1", "CVE-2023-47248, CVE-2026-25087: pickles in tables, use after free"),
    "pyyaml": ("5.4", "CVE-2020-14343: code in a full load"),
    "ray": (
        "2.56.0",
        "CVE-2025-62593, CVE-2026-27482, CVE-2026-41486, CVE-2026-57516: dashboard, pickles in Parquet and tar",
    ),
    "scikit-learn": ("1.5.0", "CVE-2024-5206: tokens kept"),
    "torch": ("2.6.0", "CVE-2025-32434: code in a load of weights only"),
}
"""The first version without them, and what was mended there."""
FIXED_FOR_DEVELOPERS = {
    "pytest": ("9.0.3", "CVE-2025-71176: predictable temporary folder"),
    "setuptools": ("78.1.1", "CVE-2024-6345, CVE-2025-47273: code and paths of package indices"),
}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    """The content of pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())


def by_name(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by the name of their package."""
    found = map(Requirement, lines)
    return {requirement.name.lower().replace("_", "-"): requirement for requirement in found}


def floor(requirement: Requirement) -> Version:
    """The lowest version that a requirement allows."""
    bounds = [bound for bound in requirement.specifier if bound.operator == ">="]
    assert len(bounds) == 1, f"{requirement}: one lower bound is needed"
    return Version(bounds[0].version)


def test_what_is_asked_for_is_installed(project: dict) -> None:
    for name, requirement in by_name(project["project"]["dependencies"]).items():
        assert requirement.specifier.contains(version(name)), f"{requirement}, installed is {version(name)}"


def test_every_dependency_has_a_lower_bound(project: dict) -> None:
    for requirement in by_name(project["project"]["dependencies"]).values():
        assert floor(requirement) > Version("0")


@pytest.mark.parametrize("name", FIXED)
def test_no_lower_bound_is_below_a_known_vulnerability(name: str, project: dict) -> None:
    fixed, why = FIXED[name]
    assert floor(by_name(project["project"]["dependencies"])[name]) >= Version(fixed), why


@pytest.mark.parametrize("name", FIXED_FOR_DEVELOPERS)
def test_nor_is_one_of_what_builds_and_tests(name: str, project: dict) -> None:
    fixed, why = FIXED_FOR_DEVELOPERS[name]
    asked_for = by_name([*project["build-system"]["requires"], *project["project"]["optional-dependencies"]["dev"]])
    assert floor(asked_for[name]) >= Version(fixed), why


def test_the_audit_is_a_command_of_the_makefile(repository: Path) -> None:
    """It checks the installed and the lowest versions, and fails if the service does not answer."""
    makefile = (repository / "Makefile").read_text()
    assert "pip-audit --strict" in makefile
    assert "--resolution lowest-direct" in makefile


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, Version]:
    """The versions of constraints.txt, by package."""
    lines = (repository / "constraints.txt").read_text().splitlines()
    pinned: dict[str, Version] = {}
    for line in lines:
        if line.startswith("#"):
            continue
        name, exactly, pin = line.partition("==")
        assert exactly, f"{line}: not NAME==VERSION"
        assert canonicalize_name(name) == name
        assert name not in pinned, f"{name} twice"
        pinned[name] = Version(pin)
    return pinned


def test_every_pin_is_a_version_that_is_asked_for(project: dict, pins: dict[str, Version]) -> None:
    for line in project["project"]["dependencies"]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} has no pin: run `make constraints`"
        assert pins[name] in requirement.specifier, f"{name} {pins[name]} is pinned, {requirement} asked for"


def test_all_that_dependencies_need_is_pinned(project: dict, pins: dict[str, Version]) -> None:
    """By the metadata of the installed packages, which are the pinned ones after `make constraints`."""
    to_visit = [Requirement(line) for line in project["project"]["dependencies"]]
    visited: set[tuple[str, frozenset[str]]] = set()
    while to_visit:
        requirement = to_visit.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in visited:
            continue
        visited.add((name, extras))
        assert name in pins, f"{name} is needed and has no pin: run `make constraints`"
        for line in requires(name) or ():
            needed = Requirement(line)
            applies = [needed.marker is None or needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)]
            if any(applies):
                to_visit.append(needed)
    assert len(visited) > len(project["project"]["dependencies"])


def test_the_pins_are_made_by_a_command_of_the_makefile_and_named_to_users(repository: Path) -> None:
    assert "\nconstraints: " in (repository / "Makefile").read_text()
    for page in ("README.md", "docs/index.md"):
        assert "constraints.txt" in (repository / page).read_text(encoding="utf-8")
