"""The wheel stored with a model installs and runs without a checkout."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mmh_ray.tracking.package_wheel import DISTRIBUTION, build_wheel

pytestmark = pytest.mark.fast


def test_it_installs_and_runs_without_a_checkout(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", place, wheel], check=True, timeout=120)
    code = f"""
import sys
sys.path.insert(0, {str(place)!r})
import mmh_ray
from mmh_ray.models.shipped import BASE_MODEL, shipped_bundle
print(mmh_ray.__file__, (shipped_bundle(BASE_MODEL) / "config.json").is_file())
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(place / "mmh_ray/__init__.py"), "True"], done.stderr
    (information,) = metadata.distributions(path=[str(place)])
    names = {Requirement(text).name for text in information.requires or []}
    assert {"mlflow", "torch", "numpy"} <= names
    assert "pytest" not in names
    assert information.name == DISTRIBUTION


def test_equal_code_gives_equal_bytes(tmp_path: Path) -> None:
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    first, second = (build_wheel(place).read_bytes() for place in places)
    assert first == second
