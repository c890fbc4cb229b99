"""SIGKILL of the driver or of an actor at any moment: the rerun completes, and every file is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import yaml

from mmh_ray.bids.derivatives import sidecar_path
from mmh_ray.bids.ledger import read_ledger
from mmh_ray.config import Config, to_dict
from mmh_ray.imaging.anatomy import Person, simulate_anatomy
from mmh_ray.imaging.phantom import canonical

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCANS, PATIENCE_S = 8, 900


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config, tiny_bundle: Path) -> Path:
    """A folder with an archive, a model and settings."""
    root = tmp_path_factory.mktemp("killed")
    for number in range(SCANS):
        anatomy = simulate_anatomy(Person(number % 3), 6.0)
        path = root / f"bids/sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        scan = (500 + number) * canonical(anatomy, "T1w", 6.0)
        nib.save(nib.Nifti1Image(scan.astype(np.float32), anatomy.affine), path)
    shutil.copytree(tiny_bundle, root / "bundle")
    config = replace(tiny_config, harmonize=replace(tiny_config.harmonize, slots=2))
    (root / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    return root


def start(inputs: Path, out: Path) -> subprocess.Popen[bytes]:
    """`mmh harmonize` in a process of its own."""
    command = [sys.executable, "-m", "mmh_ray.cli", "harmonize", str(inputs / "bids"), str(out)]
    command += ["--model", str(inputs / "bundle"), "--config", str(inputs / "config.yaml")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until_working(driver: subprocess.Popen[bytes]) -> None:
    """Until there are actors, so that a kill hits the run and not its start."""
    while driver.poll() is None and not actors(driver):
        time.sleep(0.1)


def actors(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The run's actors at this moment."""
    found = []
    with contextlib.suppress(psutil.Error):  # a process may end while it is looked at
        for child in psutil.Process(driver.pid).children(recursive=True):
            found += [child] if "HarmonizeWorker" in child.name() + " ".join(child.cmdline()) else []
    return found


def kill_an_actor(driver: subprocess.Popen[bytes]) -> bool:
    """Whether one was there to be killed."""
    for child in actors(driver)[:1]:
        child.kill()
        return True
    return False


def voxels(out: Path) -> dict[str, np.ndarray]:
    """Every harmonized image by its path."""
    return {str(path.relative_to(out)): nib.load(path).get_fdata() for path in out.rglob("*_desc-harmonized_*.nii.gz")}


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(inputs: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert start(inputs, whole).wait(timeout=PATIENCE_S) == 0
    random = np.random.default_rng(0)
    killed = 0
    for _ in range(3):
        driver = start(inputs, out)
        wait_until_working(driver)
        time.sleep(random.uniform(2, 9))
        for path in out.rglob("*_desc-harmonized_*.nii.gz"):  # whatever is there at this moment is whole
            assert np.isfinite(nib.load(path).get_fdata()).all()
        if driver.poll() is None:
            killed += 1
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert killed
    last = start(inputs, out)
    wait_until_working(last)
    time.sleep(3)
    kill_an_actor(last)
    assert last.wait(timeout=PATIENCE_S) == 0
    rows = read_ledger(out / "ledger.parquet")
    assert len(rows) == SCANS
    assert {row["status"] for row in rows} <= {"done", "skipped"}
    expected, found = voxels(whole), voxels(out)
    assert found.keys() == expected.keys()
    assert len(found) == SCANS
    for name, image in found.items():
        np.testing.assert_array_equal(image, expected[name], err_msg=name)
        assert sidecar_path(out / name).is_file()
    assert not list(out.rglob(".*"))


def test_two_runs_at_once_do_every_image_once(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(inputs, out)
    wait_until_working(first)
    second = start(inputs, out)
    assert second.wait(timeout=PATIENCE_S) == 2  # refused: another run is writing there
    assert first.wait(timeout=PATIENCE_S) == 0
    rows = read_ledger(out / "ledger.parquet")
    assert [row["status"] for row in rows] == ["done"] * SCANS
    assert len(voxels(out)) == SCANS


def test_an_actor_that_is_killed_costs_nothing(inputs: Path, tmp_path: Path) -> None:
    driver = start(inputs, tmp_path)
    wait_until_working(driver)
    hit = False
    while driver.poll() is None and not hit:
        hit = kill_an_actor(driver)
        time.sleep(0.05)
    assert hit
    assert driver.wait(timeout=PATIENCE_S) == 0
    assert [row["status"] for row in read_ledger(tmp_path / "ledger.parquet")] == ["done"] * SCANS
