"""Two nodes harmonize an archive of small scans; one of them is lost on the way. What the ledger and the folder hold in the end.

    python benchmarks/node_loss.py --scans 200

A head without CPUs and two nodes of two CPUs (`ray.cluster_utils.Cluster`: real raylets on this machine). A node is killed without warning
when two in five images are done. Every scan has noise of its own; the model is an untrained one on a grid of 6 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from ray.cluster_utils import Cluster

from mmh_ray.bids.ledger import current_rows
from mmh_ray.config import Config, GridConfig, HarmonizeConfig, ModelConfig, PrepareConfig, QualityConfig
from mmh_ray.models.bundle import save_bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

SPACING_MM = 6.0
LOST_AT = 0.4
CONFIG = Config(
    grid=GridConfig(SPACING_MM, (32, 40, 32)),
    prepare=PrepareConfig(n4=False),
    model=ModelConfig(sequences=("T1w",), channels=(8, 16), slab=1, distances=(1, 2), patch=2),
    harmonize=HarmonizeConfig(planes=("axial",)),
    quality=QualityConfig(),
)


def main() -> None:
    """Make, lose, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200)
    scans = parser.parse_args().scans
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_archive(root / "bids", scans)
        make_bundle(root / "bundle")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
            print(json.dumps(harmonize(root, scans, cluster, nodes), indent=1))
        finally:
            cluster.shutdown()


def make_archive(bids: Path, scans: int) -> None:
    """One person in a scanner, with noise that no two scans share."""
    bids.mkdir()
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "small", "BIDSVersion": "1.9.0"}))
    anatomy = simulate_anatomy(Person(1), SPACING_MM)
    clean = canonical(anatomy, "T1w", SPACING_MM)
    rng = np.random.default_rng(0)
    for number in range(scans):
        scan = np.where(anatomy.brain, np.clip(clean + rng.normal(0, 0.02, clean.shape), 0.01, None), 0)
        path = bids / f"sub-{number:04d}" / "anat" / f"sub-{number:04d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image((1000 * scan).astype(np.float32), anatomy.affine), path)


def make_bundle(folder: Path) -> None:
    """An untrained model: what befalls its images is no different."""
    torch.manual_seed(0)
    quantiles = torch.linspace(0, 1, 257).repeat(1, 2, 1)
    model = GlobalHarmonizer(CONFIG.model, CONFIG.train, quantiles)
    save_bundle(folder, model, CONFIG, quantiles=quantiles, data_hash="d" * 64, training={"steps": 0})


def harmonize(root: Path, scans: int, cluster: Cluster, nodes: list) -> dict[str, object]:
    """Run the command, kill a node on the way, and count."""
    out = root / "out"
    command = [sys.executable, "-m", "mmh_ray.cli", "harmonize", str(root / "bids"), str(out)]
    command += ["--model", str(root / "bundle"), "harmonize.planes=[axial]", "harmonize.slots=4"]
    start = time.monotonic()
    lost_at = 0
    with open(root / "log", "w") as log:
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while driver.poll() is None:
            done = len(current_rows(out)) if out.exists() else 0
            if not lost_at and done >= LOST_AT * scans:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                lost_at = done
            time.sleep(0.5)
    rows = current_rows(out)
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    whole = 0
    for path in out.rglob("*_desc-harmonized_T1w.nii.gz"):
        np.asarray(nib.load(path).dataobj)  # to the checksum
        whole += path.with_name(path.name.replace(".nii.gz", ".json")).exists()
    if driver.returncode != 0:
        print((root / "log").read_text()[-3000:], file=sys.stderr)
    return {
        "exit code": driver.returncode,
        "rows when the node was lost": lost_at,
        "rows": len(rows),
        "images with a row": len({row["image_id"] for row in rows}),
        "statuses": statuses,
        "whole files with a sidecar": whole,
        "half-written files": len(list(out.rglob(".partial-*"))),
        "seconds": round(time.monotonic() - start),
    }


if __name__ == "__main__":
    main()
