"""Harmonizing on a cluster that loses nodes: every image is still done, and none is marked as failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from mmh_ray.bids.derivatives import sidecar_path
from mmh_ray.bids.ledger import current_rows, read_ledger
from mmh_ray.config import Config, to_dict
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical
from tests.ray_driver import wait_until
from tests.ray_nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SCANS, PATIENCE_S = 8, 400

PATIENT = """
import json, sys, time
from pathlib import Path
import ray
from mmh_ray.distributed.actor_pool import ActorPool
begun, may_end = Path(sys.argv[1]), Path(sys.argv[2])
ray.init(log_to_driver=False)

@ray.remote(num_cpus=2)
class Patient:
    def harmonize(self, task):
        begun.touch()
        while not may_end.exists():
            time.sleep(0.05)
        return [{**task, "status": "done"}]

failed = lambda task, problem: [{**task, "status": problem.reason}]
pool = ActorPool(Patient.remote, 1, 1, 600.0, 600.0, lambda: "", failed)
rows = [row for rows in pool.run([{"image_id": "patient"}]) for row in rows]
Path(sys.argv[3]).write_text(json.dumps(rows))
"""


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_a_lost_node_costs_no_image_and_spoils_no_json(
    nodes: Nodes, tiny_config: Config, tiny_bundle: Path, tmp_path: Path
) -> None:
    bids, out, settings = (tmp_path / name for name in ("bids", "out", "config.yaml"))
    config = replace(tiny_config, harmonize=replace(tiny_config.harmonize, slots=2))
    settings.write_text(yaml.safe_dump(to_dict(config)))
    anatomy = simulate_anatomy(Person(3), 6.0)  # registered at the first attempt
    for number in range(SCANS):
        path = bids / f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        scan = (500 + number) * canonical(anatomy, "T1w", 6.0)
        nib.save(nib.Nifti1Image(scan.astype(np.float32), anatomy.affine), path)
    command = [sys.executable, "-m", "mmh_ray.cli", "harmonize", str(bids), str(out)]
    command += ["--model", str(tiny_bundle), "--config", str(settings), "--json"]
    environment = {**os.environ, "RAY_ADDRESS": nodes.cluster.address}
    with open(tmp_path / "log", "wb") as log, open(tmp_path / "summary.json", "wb") as summary:
        driver = subprocess.Popen(command, env=environment, stdout=summary, stderr=log)
        try:
            wait_until(lambda: out.exists() and current_rows(out), driver)
            nodes.kill(nodes.holding("armonize")[0])
            assert driver.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
        finally:
            driver.kill()
    json.loads((tmp_path / "summary.json").read_text())  # stdout is JSON only, without Ray's messages on the lost node
    rows = read_ledger(out / "ledger.parquet")
    assert [row["status"] for row in rows] == ["done"] * SCANS
    images = list(out.rglob("*_desc-harmonized_*.nii.gz"))
    assert len(images) == SCANS
    for image in images:
        assert np.isfinite(nib.load(image).get_fdata()).all()
        assert sidecar_path(image).is_file()
    assert not list(out.rglob(".partial-*"))


@pytest.mark.parametrize("nodes", [3], indirect=True)
def test_an_image_whose_node_is_lost_twice_is_done_on_a_third(nodes: Nodes, tmp_path: Path) -> None:
    begun, may_end, result = (tmp_path / name for name in ("begun", "may_end", "result"))
    environment = {**os.environ, "RAY_ADDRESS": nodes.cluster.address}
    command = [sys.executable, "-c", PATIENT, str(begun), str(may_end), str(result)]
    driver = subprocess.Popen(command, env=environment)
    try:
        for _ in range(2):
            wait_until(begun.exists, driver)
            begun.unlink()
            (holder,) = nodes.holding("harmonize patient")
            nodes.kill(holder)
        may_end.touch()
        assert driver.wait(PATIENCE_S) == 0
    finally:
        driver.kill()
    assert json.loads(result.read_text()) == [{"image_id": "patient", "status": "done"}]
