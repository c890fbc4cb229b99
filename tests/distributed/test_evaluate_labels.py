"""`mmh evaluate` on a tiny archive with given tissue labels: label tables, results per site, comparison with N4."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.ndimage import gaussian_filter

from mmh_ray.cli import main
from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.evaluation.metrics.label_metrics import LABEL_METRICS
from mmh_ray.imaging.volume import Volume, read_volume, write_volume

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SHAPE, AFFINE = (24, 26, 22), np.diag([4.0, 4, 4, 1])
GREY = {"alder": 0.55, "birch": 0.70}
"""Intensity of grey matter by site; white matter is 1 and fluid 0.2."""
VISITS = ("1", "2")
SETTINGS = ("evaluate.draws=100", "evaluate.cnn=none", "evaluate.subjects=all", "prepare.n4_iterations=[2]")


def _tissues(seed: int) -> np.ndarray:
    """A ball of labels 1 CSF, 2 GM, 3 WM, with a wide rim of zeros around it."""
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    places = np.indices(SHAPE) - (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
    ball = (places**2).sum(axis=0) < 9**2
    bounds = np.quantile(smooth[ball], (0.2, 0.6))
    return ((1 + np.digitize(smooth, bounds)) * ball).astype(np.uint8)


def _archive(root: Path) -> Path:
    """An archive without labels: two people at each of two sites, with two visits each.

    The scans are skull-stripped and have brain masks, because brain extraction would not work on these balls.
    """
    bids = root / "bids"
    lines = ["participant_id\tsite"]
    for number, site in enumerate(("alder", "alder", "birch", "birch")):
        subject = f"sub-{number}"
        lines.append(f"{subject}\t{site}")
        look = np.array([0, 0.2, GREY[site], 1.0])[_tissues(number)]
        for visit in VISITS:
            noise = 0.03 * np.random.default_rng([number, int(visit)]).normal(size=SHAPE)
            scan = 800 * np.where(look > 0, np.maximum(look + noise, 0.01), 0)
            path = bids / f"{subject}/ses-{visit}/anat/{subject}_ses-{visit}_T1w.nii.gz"
            write_volume(Volume(scan.astype(np.float32), AFFINE), path)
            mask = bids / f"derivatives/masks/{subject}_ses-{visit}_desc-brain_mask.nii.gz"
            write_volume(Volume((look > 0).astype(np.uint8), AFFINE), mask, np.uint8)
    (bids / "participants.tsv").write_text("\n".join(lines) + "\n")
    (bids / "dataset_description.json").write_text('{"Name": "labelled", "BIDSVersion": "1.10.0"}')
    return bids


def _label(folder: Path, subject: int, name: str, numbers: tuple[int, ...] = (0, 1, 2, 3)) -> Path:
    path = folder / f"sub-{subject}/sub-{subject}{name}_dseg.nii.gz"
    write_volume(Volume(np.array(numbers, np.float32)[_tissues(subject)], AFFINE), path, np.int16)
    return path


def _evaluate(bids: Path, out: Path, *more: str) -> dict:
    ours = bids.parent / "ours"
    if not ours.exists():
        for path in sorted(bids.glob("sub-*/ses-*/anat/*.nii.gz")):
            tissues = _tissues(int(path.name[4]))
            look = np.array([0, 0.2, 0.6, 1.0])[tissues] * (1 + 0.001 * np.arange(SHAPE[0])[:, None, None])
            write_volume(Volume(look.astype(np.float32), AFFINE), ours / path.name)
    archives = ["--archive", f"raw={bids}", "--archive", f"ours={ours}"]
    assert main(["evaluate", *archives, "--out", str(out), *SETTINGS, *more]) == 0
    return json.loads((out / "evaluation.json").read_text())


@dataclass
class _Evaluated:
    """An archive with labels of several kinds, and the results and printed output of its evaluation."""

    bids: Path
    out: Path
    found: dict
    printed: str


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> _Evaluated:
    root = tmp_path_factory.mktemp("labelled")
    bids, out = _archive(root), root / "out"
    for subject in (0, 1, 2):
        _label(bids / "derivatives/labels", subject, "_desc-dlmuse", (0, 51, 120, 81))
    _label(bids / "derivatives/labels", 3, "", (0, 3, 1, 2))  # BIDS numbers, without a table that says so
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = _evaluate(bids, out)
    return _Evaluated(bids, out, found, printed.getvalue())


def _unlabelled(found: dict) -> dict:
    """Measures of the raw scans that need no labels."""
    return {name: value for name, value in found["raw"]["T1w"].items() if not name.startswith("label_")}


def test_labels_of_several_kinds_are_reported_by_method_and_site(labelled: _Evaluated) -> None:
    found = labelled.found
    assert found["about"]["problems"] == []
    [said] = [note for note in found["about"]["notes"] if "label" in note]
    assert said.startswith("no labels: a label map that, read with the table tissues, shows")
    assert said.endswith("(sub-3_ses-1_T1w and 1 more)")
    labels = found["about"]["labels"]["T1w"]
    assert labels.keys() == {*BASELINES, "ours"}
    assert {site: own["n"] for site, own in labels["raw"].items()} == {"alder": 4, "birch": 2}
    raw, ours = labels["raw"], labels["ours"]
    assert raw["alder"].keys() == {*LABEL_METRICS, "n"}
    assert raw["alder"]["label_contrast"] == pytest.approx(1 - GREY["alder"], abs=0.02)
    assert raw["birch"]["label_contrast"] == pytest.approx(1 - GREY["birch"], abs=0.02)
    assert ours["birch"]["label_contrast"] == pytest.approx(0.4, abs=0.02)
    assert "label_contrast" not in labels["zscore"]["alder"]
    assert ours["alder"]["label_auc_wm"] == ours["alder"]["label_dice"] == ours["alder"]["label_inside"] == 1
    assert 0.99 < raw["alder"]["label_auc_wm"] <= 1
    entry = found["raw"]["T1w"]["label_auc_wm"]
    assert entry["n"] == 3
    spread = {name: found[name]["T1w"]["label_spread_gm"]["value"] for name in ("raw", "n4_histogram_matching", "ours")}
    assert spread["ours"] < 0.01 < 0.1 < spread["raw"]
    assert found["ours"]["T1w"]["label_retest"]["value"] == 0 < found["raw"]["T1w"]["label_retest"]["value"] < 0.02
    assert found["differences"]["raw"]["T1w"]["label_cnr"]["low"] > 0
    table = pq.read_table(labelled.out / "per_image.parquet").to_pandas()
    own = table[(table["method"] == "ours") & (table["subject"] == "3")]
    assert own["label_auc_wm"].isna().all()
    page, printed = (labelled.out / "report.html").read_text(), labelled.printed
    for text in (page, printed):
        assert "AUC WM/GM" in text
        assert "N4" in text
    assert "Are labelled tissues distinct?" in page
    assert "T1w: labelled tissues by site" in printed


def test_a_folder_and_a_table_can_be_named_and_a_bad_map_hurts_only_itself(
    labelled: _Evaluated, tmp_path: Path
) -> None:
    """If a folder of labels is given, the labels of the archive are not used."""
    bids, mine = labelled.bids, tmp_path / "mine"
    for subject in range(4):
        _label(mine, subject, "", (0, 3, 1, 2))
    _label(mine, 0, "", (0, 999, 999, 2))
    finer = read_volume(mine / "sub-1/sub-1_dseg.nii.gz").data.repeat(2, 0)
    write_volume(Volume(finer, np.array([[2.0, 0, 0, -1], *AFFINE[1:]])), mine / "sub-1/sub-1_dseg.nii.gz", np.int16)
    (mine / "sub-2/sub-2_dseg.nii.gz").write_bytes(b"no image")
    found = _evaluate(bids, tmp_path / "out", "--labels", str(mine), "evaluate.label_table=bids")
    notes = " ".join(found["about"]["notes"])
    assert "a label map with 40% of its labelled voxels in the table bids" in notes
    assert "sub-2_dseg.nii.gz: unreadable" in notes
    assert {site: own["n"] for site, own in found["about"]["labels"]["T1w"]["raw"].items()} == {"alder": 2, "birch": 2}
    assert found["about"]["labels"]["T1w"]["raw"]["alder"]["label_auc_wm"] > 0.99
    assert _unlabelled(found) == _unlabelled(labelled.found)
    (tmp_path / "empty").mkdir()
    archive = ["--archive", f"raw={bids}", "--out", str(tmp_path / "o")]
    assert main(["evaluate", *archive, "--labels", str(tmp_path / "empty")]) == 1


@pytest.mark.slow
def test_real_scans_labels_stand_apart_as_they_are_known_to(real_bids: Path, tmp_path: Path) -> None:
    maps = sorted((real_bids / "derivatives").rglob("*_desc-dlmuse_dseg.nii.gz"))[:2]
    if not maps:
        pytest.skip("no scan labelled by DLMUSE")
    bids = tmp_path / "bids"
    (bids / "derivatives").mkdir(parents=True)
    shutil.copy(real_bids / "dataset_description.json", bids)
    lines = ["participant_id\tsite"]
    for path in maps:
        subject = path.name.split("_")[0]
        lines.append(f"{subject}\there")
        shutil.copytree(real_bids / subject, bids / subject)
        shutil.copy(path, bids / "derivatives")
    (bids / "participants.tsv").write_text("\n".join(lines) + "\n")
    assert main(["evaluate", "--archive", f"raw={bids}", "--out", str(tmp_path / "out"), *SETTINGS[:3]]) == 0
    labels = json.loads((tmp_path / "out/evaluation.json").read_text())["about"]["labels"]["T1w"]
    raw, corrected = labels["raw"]["here"], labels["n4"]["here"]
    assert 0.8 < raw["label_auc_wm"] < corrected["label_auc_wm"] < 0.95
    assert 0.2 < corrected["label_contrast"] < 0.35
    assert raw["label_inside"] > 0.8
