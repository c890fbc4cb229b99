"""The whole evaluation on a tiny simulated archive whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.ndimage import gaussian_filter

from mmh_ray.bids.manifest import SCHEMA, to_table, write_manifest
from mmh_ray.config import Config, ModelConfig, PrepareConfig
from mmh_ray.distributed.evaluate import MEASURES, evaluate
from mmh_ray.errors import DataError
from mmh_ray.evaluation.subject import METHODS
from mmh_ray.imaging.volume import Volume, write_volume

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SHAPE, AFFINE = (24, 26, 22), np.diag([4.0, 4, 4, 1])
MASK = np.zeros(SHAPE, np.float32)
MASK[4:-4, 4:-4, 4:-4] = 1
GAMMA = {"alder": 0.6, "birch": 1.7}
CONFIG = Config(prepare=PrepareConfig(n4_iterations=(2,)), model=ModelConfig(sequences=("T1w",)))


def _tissues(subject: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth in 0-1, grey and white matter."""
    smooth = gaussian_filter(np.random.default_rng(subject).normal(size=SHAPE), 1.5)
    gm, wm = (smooth > np.quantile(smooth, share) for share in (0.2, 0.6))
    return (
        (0.2 + 0.3 * gm + 0.4 * wm + 0.1 * smooth).astype(np.float32),
        (gm & ~wm).astype(np.float32),
        wm.astype(np.float32),
    )


class _Archive:
    """Two training subjects a site, travelers at both sites; the harmonized image of a traveler is the truth itself."""

    def __init__(self, root: Path, travelers: int) -> None:
        self.root, self.rows = root, list[dict]()
        self.truth, self.harmonized = root / "derivatives/truth", root / "harmonized"
        people = [(f"{site}{i}", [site]) for site in GAMMA for i in range(2)]
        people += [(f"traveler{i}", list(GAMMA)) for i in range(travelers)]
        for number, (name, sites) in enumerate(people):
            self._add(number, name, sites)
        write_manifest(to_table(self.rows), root / "manifest.parquet")

    def _add(self, number: int, name: str, sites: list[str]) -> None:
        truth, gm, wm = _tissues(number)
        folder = self.truth / f"sub-{name}" / "anat"
        maps = {"desc-brain_mask": MASK, "desc-noisefree_T1w": truth, "label-GM_probseg": gm, "label-WM_probseg": wm}
        for ending, data in maps.items():
            write_volume(Volume(data, AFFINE), folder / f"sub-{name}_{ending}.nii.gz")
        for site in sites:
            rng = np.random.default_rng([number, *map(ord, site)])
            scan = 500 * (truth ** GAMMA[site] + 0.25 * np.abs(rng.normal(size=SHAPE)))
            stem = f"sub-{name}/ses-{site}/anat/sub-{name}_ses-{site}"
            write_volume(Volume(scan, AFFINE), self.root / f"{stem}_T1w.nii.gz")
            write_volume(Volume(truth * MASK, AFFINE), self.harmonized / f"{stem}_desc-harmonized_T1w.nii.gz")
            facts = {"image_id": f"sub-{name}_ses-{site}_T1w", "uri": str(self.root / f"{stem}_T1w.nii.gz")}
            facts |= {"subject": name, "session": site, "site": site, "sequence": "T1w", "status": "ok"}
            facts |= {
                "split": "train" if len(sites) == 1 else "test",
                "mask_uri": str(folder / f"sub-{name}_desc-brain_mask.nii.gz"),
            }
            self.rows.append(dict.fromkeys(SCHEMA.names) | facts)

    def evaluate(self, truth: bool = True) -> dict:
        truth_folder = str(self.truth) if truth else None
        return evaluate(
            str(self.root / "manifest.parquet"), str(self.harmonized), str(self.root / "out"), CONFIG, truth_folder
        )


def test_harmonized_that_is_the_truth_wins_everywhere(tmp_path):
    archive = _Archive(tmp_path, travelers=2)
    result = archive.evaluate()
    methods = result["results"]["T1w"]
    assert list(methods) == list(METHODS)
    assert all(list(row) == list(MEASURES) for row in methods.values())
    assert (result["missing"], result["failed"], result["notes"], result["subjects"]) == ([], [], [], {"T1w": 2})
    ours, others = methods.pop("harmonized"), list(methods.values())
    assert ours["truth_nrmse"] < 0.05 < 0.1 < min(row["truth_nrmse"] for row in others)
    assert ours["psnr"] == 100 > 30 > max(row["psnr"] for row in others)
    assert ours["psnr_truth"] == 100
    assert ours["ssim"] == pytest.approx(1)
    assert ours["w1"] == 0
    assert ours["tissue_contrast"] > max(row["tissue_contrast"] for row in others)
    assert methods["raw"]["gradient_correlation"] == pytest.approx(1)
    assert methods["n4_histogram_matching"]["w1"] < 0.2 * methods["raw"]["w1"]


def test_what_is_written_says_the_same(tmp_path):
    result = _Archive(tmp_path, travelers=2).evaluate()
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["T1w"] == result["results"]["T1w"]
    assert written["missing"] == []
    table = pq.read_table(tmp_path / "out/per_image.parquet").to_pandas()
    assert len(table) == 4 * len(METHODS)
    means = table.groupby("method")[list(MEASURES)].mean()
    for measure in ("psnr", "ssim_truth", "gradient_correlation"):
        assert means.loc["nyul", measure] == pytest.approx(written["T1w"]["nyul"][measure])
    pictures = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert pictures == {"T1w_before_after.png", "T1w_differences.png", "T1w_histograms.png"}


def test_a_missing_output_and_an_unreadable_scan_are_reported_and_the_others_scored(tmp_path, caplog):
    archive = _Archive(tmp_path, travelers=3)
    gone = archive.harmonized / "sub-traveler0/ses-birch/anat/sub-traveler0_ses-birch_desc-harmonized_T1w.nii.gz"
    gone.unlink()
    scan = tmp_path / "sub-traveler1/ses-alder/anat/sub-traveler1_ses-alder_T1w.nii.gz"
    scan.write_bytes(scan.read_bytes()[:200])
    result = archive.evaluate()
    assert result["missing"] == [{"image_id": "sub-traveler0_ses-birch_T1w", "expected": str(gone)}]
    assert [row["image_id"] for row in result["failed"]] == ["sub-traveler1_ses-alder_T1w"]
    assert "sub-traveler0_ses-birch_T1w has no harmonized output" in caplog.text
    assert result["results"]["T1w"]["harmonized"]["psnr"] == 100  # from the third traveler
    table = pq.read_table(tmp_path / "out/per_image.parquet").to_pandas()
    assert table["method"].value_counts()[["raw", "harmonized"]].tolist() == [5, 4]


def test_without_truth_and_travelers_sites_are_pooled(tmp_path):
    result = _Archive(tmp_path, travelers=0).evaluate(truth=False)
    methods = result["results"]["T1w"]
    assert {name for name, value in methods["raw"].items() if value is None} == set(MEASURES) - {
        "w1",
        "gradient_correlation",
    }
    assert methods["raw"]["w1"] > 5 * methods["n4_histogram_matching"]["w1"]
    assert any("no subject at two sites" in note for note in result["notes"])
    assert result["subjects"] == {"T1w": 4}


def test_a_manifest_without_the_models_sequences_is_refused(tmp_path):
    archive = _Archive(tmp_path, travelers=0)
    write_manifest(to_table([row | {"sequence": "FLAIR"} for row in archive.rows]), tmp_path / "manifest.parquet")
    with pytest.raises(DataError, match="T1w"):
        archive.evaluate()
