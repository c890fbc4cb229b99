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
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import yaml

from mmh_ray.bids.derivatives import sidecar_path
from mmh_ray.bids.ledger import current_rows, read_ledger
from mmh_ray.bids.output_folder import output_folder
from mmh_ray.config import Config, to_dict
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical
from tests.ray_driver import wait_until
from tests.s3_files import download, keys, upload

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCANS, KILLS, PATIENCE_S = 10, 2, 900
STORE_PAUSE_S = 0.5
"""Between two looks into the store, whose server runs in the test's own process."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config, tiny_bundle: Path) -> Path:
    """A folder with an archive, a model and settings: one actor, so that whoever kills it hits the one at work."""
    root = tmp_path_factory.mktemp("killed")
    for number in range(SCANS):
        anatomy = simulate_anatomy(Person(3 + number % 3), 6.0)  # registered at the first attempt
        path = root / f"bids/sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        scan = (500 + number) * canonical(anatomy, "T1w", 6.0)
        nib.save(nib.Nifti1Image(scan.astype(np.float32), anatomy.affine), path)
    shutil.copytree(tiny_bundle, root / "bundle")
    config = replace(tiny_config, harmonize=replace(tiny_config.harmonize, slots=1))
    (root / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    return root


def start(inputs: Path, out: Path | str, bids: Path | str | None = None) -> subprocess.Popen[bytes]:
    """`mmh harmonize` in a process of its own."""
    command = [sys.executable, "-m", "mmh_ray.cli", "harmonize", str(bids or inputs / "bids"), str(out)]
    command += ["--model", str(inputs / "bundle"), "--config", str(inputs / "config.yaml")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def assert_refused_beside(
    running: subprocess.Popen[bytes], inputs: Path, out: Path | str, bids: Path | str | None = None
) -> None:
    """A second run into the folder of a running one is refused, which is paused so that it cannot end before."""
    os.kill(running.pid, signal.SIGSTOP)
    try:
        assert start(inputs, out, bids).wait(timeout=PATIENCE_S) == 2
    finally:
        os.kill(running.pid, signal.SIGCONT)


def kill_an_actor(driver: subprocess.Popen[bytes]) -> bool:
    """Whether one was there to be killed."""
    for child in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ended while it was looked at
            title = child.name() + " ".join(
                child.cmdline()
            )  # Ray names it after its actor, or the image that it works on
            if "ray::" in title and "harmonize" in title.lower():
                child.kill()
                return True
    return False


def recorded(out: Path) -> set[str]:
    """Images that have a row."""
    return {row["image_id"] for row in current_rows(out)} if out.exists() else set()


def voxels(out: Path) -> dict[str, np.ndarray]:
    """Every harmonized image by its path."""
    return {str(path.relative_to(out)): nib.load(path).get_fdata() for path in out.rglob("*_desc-harmonized_*.nii.gz")}


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> Path:
    """What a run makes that nothing befell but a second one into the same folder, which is refused."""
    out = inputs / "whole"
    first = start(inputs, out)
    wait_until((out / ".ledger.jsonl").exists, first)
    assert_refused_beside(first, inputs, out)
    assert first.wait(timeout=PATIENCE_S) == 0
    return out


def test_two_runs_at_once_do_every_image_once(undisturbed: Path) -> None:
    rows = read_ledger(undisturbed / "ledger.parquet")
    assert [row["status"] for row in rows] == ["done"] * SCANS
    assert len(voxels(undisturbed)) == SCANS


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(inputs: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The driver is killed at random moments between the images, the actor of the last run when it has made one."""
    out, seed, done = tmp_path / "out", time.time_ns() % 2**32, set[str]()
    print(f"seed {seed}")  # shown when the test fails
    random = np.random.default_rng(seed)
    for _ in range(KILLS):
        driver = start(inputs, out)
        wait_until(lambda known=done: recorded(out) - known, driver)
        time.sleep(random.uniform(0, 0.2))  # less than an image takes: of four at a time, two are left after two kills
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        done = recorded(out)
        assert 0 < len(done) < SCANS
        assert all(np.isfinite(image).all() for image in voxels(out).values())  # what is there now is whole
    last = start(inputs, out)
    wait_until(lambda: recorded(out) - done, last)
    assert kill_an_actor(last)
    assert last.wait(timeout=PATIENCE_S) == 0
    rows = read_ledger(out / "ledger.parquet")
    assert len(rows) == SCANS
    assert {row["image_id"] for row in rows if row["status"] == "skipped"} == done  # nothing is made twice
    assert {row["image_id"] for row in rows if row["status"] == "done"} == {row["image_id"] for row in rows} - done
    expected, found = voxels(undisturbed), voxels(out)
    assert found.keys() == expected.keys()
    for name, image in found.items():
        np.testing.assert_array_equal(image, expected[name], err_msg=name)
        assert sidecar_path(out / name).is_file()
    assert not list(out.rglob(".partial-*"))


def test_a_run_into_an_object_store_is_killed_and_ends_as_one_into_a_folder(
    s3: Any, inputs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Its driver is killed, and the one after it is alone there: a third is refused."""
    upload(s3, inputs / "bids", "bids")
    bids = "s3://bucket/bids"
    out = "s3://bucket/out"

    def recorded_in_store() -> set[str]:
        with output_folder(out) as output:
            return {row["image_id"] for row in current_rows(output.folder)}

    driver = start(inputs, out, bids)
    wait_until(recorded_in_store, driver, STORE_PAUSE_S)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(2)  # what its actor had begun it may still have ended
    done = recorded_in_store()
    assert 0 < len(done) < SCANS
    last = start(inputs, out, bids)
    wait_until(lambda: recorded_in_store() - done, last, STORE_PAUSE_S)
    assert_refused_beside(last, inputs, out, bids)
    assert last.wait(timeout=PATIENCE_S) == 0
    fetched = download(s3, "out", tmp_path / "fetched")
    rows = read_ledger(fetched / "ledger.parquet")
    expected_rows = read_ledger(undisturbed / "ledger.parquet")
    assert [row["output"] for row in rows] == [row["output"] for row in expected_rows]
    assert {row["image_id"] for row in rows if row["status"] == "skipped"} == done
    assert {row["status"] for row in rows} == {"done", "skipped"}
    expected, found = voxels(undisturbed), voxels(fetched)
    assert found.keys() == expected.keys()
    for name, image in found.items():
        np.testing.assert_array_equal(image, expected[name], err_msg=name)
        assert sidecar_path(fetched / name).is_file()
    assert {key for key in keys(s3, "out") if key.startswith(".")} == {".bidsignore"}
