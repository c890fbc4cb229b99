"""The whole evaluation on a tiny simulated archive whose answer is known."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.ndimage import gaussian_filter

from mmh_ray.bids.manifest import to_table, write_manifest
from mmh_ray.bids.schema import SCHEMA
from mmh_ray.config import Config, EvaluateConfig, ModelConfig, PrepareConfig
from mmh_ray.distributed.evaluate import evaluate
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.evaluation.statistics.summary import by_sequence
from mmh_ray.imaging.volume import Volume, read_volume, write_volume

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SHAPE, AFFINE = (24, 26, 22), np.diag([4.0, 4, 4, 1])
MASK = np.zeros(SHAPE, np.float32)
MASK[4:-4, 4:-4, 4:-4] = 1
GAMMA = {"alder": 0.6, "birch": 1.7}
CONFIG = Config(
    prepare=PrepareConfig(n4_iterations=(2,)),
    model=ModelConfig(sequences=("T1w",)),
    evaluate=EvaluateConfig(draws=100, cnn="none"),
)


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
    """Subjects of one site (split train, two of three at each), travelers at both; `ours` is the truth itself."""

    def __init__(self, root: Path, travelers: int, at_site: int = 3) -> None:
        self.root, self.rows = root, list[dict[str, Any]]()
        self.truth, self.ours = root / "derivatives/truth", root / "ours"
        people = [(f"{site}{i}", [site]) for site in GAMMA for i in range(at_site)]
        people += [(f"traveler{i}", list(GAMMA)) for i in range(travelers)]
        for number, (name, sites) in enumerate(people):
            self._add(number, name, sites)
        self.write()

    def write(self) -> None:
        write_manifest(to_table(self.rows), self.root / "manifest.parquet")

    def _add(self, number: int, name: str, sites: list[str]) -> None:
        truth, gm, wm = _tissues(number)
        folder = self.truth / f"sub-{name}" / "anat"
        maps = {"desc-brain_mask": MASK, "desc-noisefree_T1w": truth, "label-GM_probseg": gm, "label-WM_probseg": wm}
        maps["label-CSF_probseg"] = 1 - gm - wm
        for ending, data in maps.items():
            write_volume(Volume(data, AFFINE), folder / f"sub-{name}_{ending}.nii.gz")
        for site in sites:
            rng = np.random.default_rng([number, *map(ord, site)])
            scan = 500 * (truth ** GAMMA[site] + 0.25 * np.abs(rng.normal(size=SHAPE)))
            stem = f"sub-{name}/ses-{site}/anat/sub-{name}_ses-{site}"
            write_volume(Volume(scan.astype(np.float32), AFFINE), self.root / f"{stem}_T1w.nii.gz")
            write_volume(Volume(truth * MASK, AFFINE), self.ours / f"{stem}_desc-harmonized_T1w.nii.gz")
            facts = {"image_id": f"sub-{name}_ses-{site}_T1w", "uri": str(self.root / f"{stem}_T1w.nii.gz")}
            facts |= {"subject": name, "session": site, "site": site, "sequence": "T1w", "status": "ok"}
            facts |= {"age": 20.0 + number, "sex": "MF"[number % 2], "sha256": f"{number}{site}"}
            facts |= {"split": "train" if len(sites) == 1 and not name.endswith("2") else "test"}
            facts |= {"mask_uri": str(folder / f"sub-{name}_desc-brain_mask.nii.gz")}
            self.rows.append(dict.fromkeys(SCHEMA.names) | facts)

    def add_archive(self, name: str, change) -> str:
        """Another method's folder: every scan changed, in a flat folder, named as other software does."""
        folder = self.root / name
        for row in self.rows:
            scan = read_volume(row["uri"])
            write_volume(scan.like(change(scan.data, row)), folder / f"{row['image_id'][:-4]}_desc-{name}_T1w.nii.gz")
        return str(folder)

    def evaluate(self, truth: bool = True, config: Config = CONFIG, **others: str) -> dict[str, Any]:
        archives = {"raw": str(self.root / "manifest.parquet"), "ours": str(self.ours), **others}
        return evaluate(archives, str(self.root / "out"), config, str(self.truth) if truth else None)


def _values(evaluation: dict[str, Any]) -> dict[str, dict[str, float]]:
    return by_sequence(evaluation)["T1w"]


@dataclass
class _Evaluated:
    """An archive of four travelers, and what its evaluation gave."""

    archive: _Archive
    result: dict[str, Any]

    @property
    def out(self) -> Path:
        return self.archive.root / "out"

    def copy(self, root: Path) -> _Archive:
        """The archive elsewhere, for a test that changes it."""
        shutil.copytree(self.archive.root, root, ignore=shutil.ignore_patterns("out"), dirs_exist_ok=True)
        moved = copy.copy(self.archive)
        moved.root, moved.truth, moved.ours = root, root / "derivatives/truth", root / "ours"
        here, there = str(self.archive.root), str(root)
        moved.rows = [
            row | {name: row[name].replace(here, there) for name in ("uri", "mask_uri")} for row in self.archive.rows
        ]
        moved.write()
        return moved


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> _Evaluated:
    archive = _Archive(tmp_path_factory.mktemp("four"), travelers=4)
    return _Evaluated(archive, archive.evaluate())


def test_ours_that_is_the_truth_wins_everywhere(four: _Evaluated) -> None:
    result = four.result
    methods = _values(result)
    assert set(methods) >= {*BASELINES, "ours", "combat", "covbat"}
    about = result["about"]
    assert about["labels"] == {}
    assert not any(name.startswith("label_") for name in methods["raw"])
    assert (about["problems"], about["subjects"]) == ([], {"T1w": 4})
    assert about["notes"] == ["T1w: 4 subjects; intervals over so few are too narrow"]
    ours = methods["ours"]
    others = [row for name, row in methods.items() if name in BASELINES]
    assert ours["truth_nrmse"] < 0.05 < 0.1 < min(row["truth_nrmse"] for row in others)
    assert ours["psnr"] == 100 > 30 > max(row["psnr"] for row in others)
    assert ours["psnr_truth"] == 100
    assert ours["ssim"] == pytest.approx(1)
    assert (ours["w1"], ours["mae"], ours["tissue_dice"]) == (0, 0, 1)
    assert ours["tissue_contrast"] > max(row["tissue_contrast"] for row in others)
    assert ours["dice_truth"] > max(row["dice_truth"] for row in others)
    assert methods["raw"]["gradient_correlation"] == pytest.approx(1)
    assert methods["raw"]["hallucination"] == pytest.approx(0, abs=1e-6)
    assert methods["n4_histogram_matching"]["w1"] < 0.2 * methods["raw"]["w1"]
    assert ours["subject_nearest"] == 1
    assert ours["site_probe"] <= 0.5 < methods["raw"]["site_probe"]


def test_differences_are_ours_minus_each(four: _Evaluated) -> None:
    result = four.result
    values, against = _values(result), result["differences"]
    assert "ours" not in against
    for method, measure in (
        ("raw", "psnr"),
        ("nyul", "ssim"),
        ("raw", "truth_nrmse"),
        ("zscore", "gradient_correlation"),
    ):
        found = against[method]["T1w"][measure]
        assert found["value"] == pytest.approx(values["ours"][measure] - values[method][measure])
        assert found["low"] <= found["value"] <= found["high"]
        assert found["n"] == 4


def test_what_is_written_says_the_same(four: _Evaluated) -> None:
    written = json.loads((four.out / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(four.result))
    assert written["raw"]["T1w"]["psnr"].keys() == {"value", "low", "high", "n"}
    table = pq.read_table(four.out / "per_image.parquet").to_pandas()
    assert set(table["method"].value_counts()) == {8}
    means = table.groupby("method").mean(numeric_only=True)
    for measure in ("psnr", "ssim_truth", "gradient_correlation"):
        assert means.loc["nyul", measure] == pytest.approx(written["nyul"]["T1w"][measure]["value"])
    pictures = {path.name for path in (four.out / "figures").iterdir()}
    kinds = ("before_after", "differences", "dissimilarity", "histograms", "map", "map_people")
    assert pictures == {f"T1w_{kind}.png" for kind in kinds}
    assert "harmonized (ours)" in (four.out / "report.html").read_text()


def test_another_methods_folder_is_a_method_and_what_it_lacks_is_named(tmp_path):
    archive = _Archive(tmp_path, travelers=4)
    blur = archive.add_archive("blurred", lambda data, row: gaussian_filter(data, 1.5))
    names = [f"sub-traveler{i}_ses-{site}_desc-blurred_T1w.nii.gz" for i in (0, 1) for site in GAMMA]
    Path(blur, names[0]).unlink()
    Path(blur, names[1]).write_bytes(b"no image")
    moved = AFFINE.copy()
    moved[0, 3] = 5
    write_volume(Volume(read_volume(Path(blur, names[2])).data, moved), Path(blur, names[2]))
    write_volume(Volume(np.arange(125, dtype=np.float32).reshape(5, 5, 5), AFFINE), Path(blur, names[3]))
    write_volume(Volume(MASK, AFFINE), Path(blur, "sub-traveler2_ses-alder_space-MNI_T1w.nii.gz"))
    result = archive.evaluate(blurred=blur)
    found = {row["image_id"][4:-4]: (row["status"], row["reason"]) for row in result["about"]["problems"]}
    assert {row["method"] for row in result["about"]["problems"]} == {"blurred"}
    expected = {
        "traveler0_ses-alder": ("missing", "no volume of"),
        "traveler0_ses-birch": ("unusable", "unreadable"),
        "traveler1_ses-alder": ("unusable", "affine differs by up to 5 mm"),
        "traveler1_ses-birch": ("unusable", "shape (5, 5, 5)"),
        "traveler2_ses-alder": ("ambiguous", "could be meant"),
    }
    assert found.keys() == expected.keys()
    for name, (status, words) in expected.items():
        assert found[name][0] == status
        assert words in found[name][1]
    values = _values(result)
    assert result["blurred"]["T1w"]["psnr"]["n"] == 1
    assert values["blurred"]["smoothness_mm"] > values["raw"]["smoothness_mm"]
    assert values["blurred"]["gradient_correlation"] < 0.9


def test_an_unreadable_scan_is_reported_and_the_others_scored(tmp_path, caplog):
    archive = _Archive(tmp_path, travelers=3)
    scan = tmp_path / "sub-traveler1/ses-alder/anat/sub-traveler1_ses-alder_T1w.nii.gz"
    scan.write_bytes(scan.read_bytes()[:200])
    result = archive.evaluate()
    [problem] = result["about"]["problems"]
    assert (problem["method"], problem["image_id"]) == ("raw", "sub-traveler1_ses-alder_T1w")
    assert "sub-traveler1_ses-alder_T1w of raw is not scored" in caplog.text
    assert result["ours"]["T1w"]["psnr"]["n"] == 2


def test_without_truth_and_travelers_sites_are_pooled_and_the_confounding_is_said(tmp_path):
    result = _Archive(tmp_path, travelers=0, at_site=6).evaluate(truth=False)
    methods = _values(result)
    assert not {"psnr", "ssim", "truth_nrmse", "dice_truth", "subject_nearest"} & methods["raw"].keys()
    assert methods["raw"]["w1"] > 5 * methods["n4_histogram_matching"]["w1"]
    notes = " ".join(result["about"]["notes"])
    assert "site and population cannot be told apart" in notes
    assert "10 of 12 scored subjects are of split train" in notes
    assert result["about"]["subjects"] == {"T1w": 12}
    assert methods["raw"]["site_probe"] > 0.9
    assert "age_mae" in methods["ours"]


def test_a_test_images_figures_depend_on_no_other_test_image(four: _Evaluated, tmp_path: Path) -> None:
    """Baselines are fitted on split train alone, and an image is scaled by nothing but itself."""
    archive = four.copy(tmp_path)
    before = pq.read_table(four.out / "per_image.parquet").to_pandas()
    for row in archive.rows:
        if row["subject"] == "traveler3":
            scan = read_volume(row["uri"])
            write_volume(scan.like(3 * scan.data[::-1] ** 2 + 7), row["uri"])
    archive.evaluate()
    after = pq.read_table(tmp_path / "out/per_image.parquet").to_pandas()
    own = ["psnr", "ssim", "w1", "mae", "psnr_truth", "gradient_correlation", "hallucination", "noise", "gm_share"]
    kept = before["subject"] != "traveler3"
    assert kept.sum() == 6 * (len(BASELINES) + 1)
    np.testing.assert_array_equal(before.loc[kept, own], after.loc[kept, own])
    assert not np.array_equal(before.loc[~kept, own], after.loc[~kept, own])


def test_ray_order_and_repetition_change_nothing(four: _Evaluated, tmp_path: Path) -> None:
    first = four.result
    archive = four.copy(tmp_path)
    archive.rows.reverse()
    archive.write()
    second = archive.evaluate()
    assert _values(first) == _values(second)
    assert first["about"]["data_hash"] == second["about"]["data_hash"]


def test_an_archive_harmonized_again_says_how_much_changed(tmp_path):
    archive = _Archive(tmp_path, travelers=2)
    again = tmp_path / "again"
    for path in archive.ours.rglob("*.nii.gz"):
        once = read_volume(path)
        spread = np.subtract(*np.percentile(once.data[MASK > 0], (99, 1)))
        name = path.name.replace("desc-harmonized", "desc-harmonizedHarmonized")
        write_volume(once.like((once.data + 0.02 * spread * MASK).astype(np.float32)), again / name)
    result = archive.evaluate(ours_twice=str(again))
    assert result["ours"]["T1w"]["idempotence"]["value"] == pytest.approx(0.02, rel=1e-3)
    assert "idempotence" not in result["raw"]["T1w"]
    assert "ours_twice" not in result
    with pytest.raises(ConfigError, match="archive other_twice"):
        archive.evaluate(other_twice=str(again))


def test_archives_need_a_raw_one_and_names_of_their_own(tmp_path):
    with pytest.raises(ConfigError, match="expected one named raw"):
        evaluate({"ours": str(tmp_path)}, str(tmp_path / "out"), CONFIG)
    for name in ("nyul", "about", "a b", "truth"):
        with pytest.raises(ConfigError, match=f"archive name '{name}'"):
            evaluate({"raw": str(tmp_path), name: str(tmp_path)}, str(tmp_path / "out"), CONFIG)


def test_a_manifest_without_the_models_sequences_is_refused(tmp_path):
    archive = _Archive(tmp_path, travelers=0)
    archive.rows = [row | {"sequence": "FLAIR"} for row in archive.rows]
    archive.write()
    with pytest.raises(DataError, match="T1w"):
        archive.evaluate()
