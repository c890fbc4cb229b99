"""CITATION.cff: the keys that the format requires, and the version of the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.fast

REQUIRED = {"cff-version", "message", "title", "authors"}
ALLOWED = REQUIRED | {"type", "abstract", "version", "license", "keywords", "references"}
"""Of the keys that Citation File Format 1.2.0 knows, those that are used here."""
NAMES = {"name", "given-names", "family-names"}


@pytest.fixture(scope="module")
def citation(repository: Path) -> dict[str, Any]:
    return yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))


def test_it_has_the_keys_of_its_format(citation: dict[str, Any]) -> None:
    assert citation["cff-version"] == "1.2.0"
    assert REQUIRED <= set(citation) <= ALLOWED
    assert citation["type"] == "software"
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert work["authors"]
        assert all(set(author) <= NAMES for author in work["authors"])
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_version_and_licence_are_those_of_the_package(citation: dict[str, Any], repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    assert citation["version"] == project["tool"]["setuptools_scm"]["fallback_version"]
    assert citation["license"] == project["project"]["license"]["text"]
