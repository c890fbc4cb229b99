"""`mmh evaluate` on simulated brains, from the folder of an archive to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmh_ray.cli import main
from mmh_ray.config import PhantomConfig
from mmh_ray.demo import EXPECTED, metrics_of
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.imaging.volume import read_volume, write_volume

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SITES, TRAVELERS = 2, 3


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of a method that gives the noise-free truth with a little noise, alike at every site."""
    root = tmp_path_factory.mktemp("phantoms")
    bids, ours, out = root / "bids", root / "ours", root / "out"
    make_archive(str(bids), PhantomConfig(SITES, 3, TRAVELERS, 4.0, lesions=1.0))
    for path in sorted(bids.glob("sub-traveler*/ses-*/anat/*w.nii.gz")):
        subject, suffix = path.name.split("_")[0], path.name.rpartition("_")[2]
        truth = read_volume(bids / f"derivatives/truth/{subject}/anat/{subject}_desc-noisefree_{suffix}")
        noise = np.random.default_rng(len(path.name)).normal(0, 0.01, truth.data.shape)
        write_volume(truth.like((truth.data + noise).astype(np.float32)), ours / path.name)
    archives = ["--archive", f"raw={bids}", "--archive", f"ours={ours}", "--truth", str(bids / "derivatives/truth")]
    settings = ["evaluate.draws=100", "prepare.n4_iterations=[5]", "model.sequences=[T1w]"]
    assert main(["evaluate", *archives, "--out", str(out), *settings]) == 0
    return out


def test_the_truth_wins_and_keeps_the_person(evaluated: Path) -> None:
    found = json.loads((evaluated / "evaluation.json").read_text())
    assert found["about"]["subjects"] == {"T1w": TRAVELERS}
    assert found["about"]["problems"] == []
    for measure in ("truth_nrmse", "w1", "mae"):
        ours = found["ours"]["T1w"][measure]["value"]
        assert ours < min(found[name]["T1w"][measure]["value"] for name in BASELINES), measure
    assert found["ours"]["T1w"]["dice_truth"]["value"] > found["raw"]["T1w"]["dice_truth"]["value"]
    assert found["ours"]["T1w"]["subject_nearest"]["value"] == 1
    probe = found["ours"]["T1w"]["site_probe"]
    assert probe["value"] <= probe["chance_high"] < found["raw"]["T1w"]["site_probe"]["value"]
    assert {"site_probe_cnn", "lesion_preservation", "site_silhouette"} <= found["ours"]["T1w"].keys()
    assert found["ours"]["T1w"]["unet_dice"]["value"] > found["raw"]["T1w"]["unet_dice"]["value"]
    assert found["combat"]["T1w"].keys() >= {"site_probe", "site_lisi"}
    assert "psnr" not in found["combat"]["T1w"]
    assert found["differences"]["raw"]["T1w"]["truth_nrmse"]["high"] < 0


def test_every_image_and_method_has_its_row(evaluated: Path) -> None:
    table = pq.read_table(evaluated / "per_image.parquet").to_pandas()
    assert len(table) == SITES * TRAVELERS * (len(BASELINES) + 1)
    assert table[["psnr", "truth_nrmse", "hallucination", "noise", "site_probe"]].notna().all().all()


def test_the_report_says_it_in_words(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text()
    for words in ("is no better than guessing", "Best simple alternative", "lesions keep", "data:image/png"):
        assert words in page
    assert "<script src" not in page


def test_the_demos_metrics_are_values_alone(evaluated: Path) -> None:
    evaluation = json.loads((evaluated / "evaluation.json").read_text())
    metrics = metrics_of(evaluation)
    rows = metrics["T1w"]
    assert rows.keys() >= {*BASELINES, "harmonized", "combat"}
    assert all(row.keys() >= set(EXPECTED) for row in rows.values())
    assert rows["harmonized"]["psnr"] == evaluation["ours"]["T1w"]["psnr"]["value"]
    assert rows["combat"]["psnr"] is None
    assert (metrics["missing"], metrics["failed"]) == ([], [])
