"""The batch job on a small archive of good and bad images: derivatives, ledger, reruns, exit codes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.bids.ledger import read_ledger
from mmh_ray.bids.rows import problem_of
from mmh_ray.cli import main
from mmh_ray.config import Config, GridConfig
from mmh_ray.distributed.harmonize import harmonize, plan, pool_layout
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.harmonization.job import Job
from mmh_ray.imaging.grid import to_grid
from mmh_ray.models.bundle import bundle_hash
from mmh_ray.provenance import hash_of, sha256_file
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

pytestmark = pytest.mark.ray

GOOD = ("sub-01_T1w", "sub-01_T2w")
REASONS = {
    "sub-02_FLAIR": "sequence FLAIR; expected one that this model harmonizes: T1w, T2w. Leave it out",
    "sub-03_T1w": "7 NaN or infinite voxels",
    "sub-04_T1w": "4-D image",
    "sub-05_T1w": "unreadable",
}
"""What is wrong with the others."""


@dataclass
class FirstRun:
    """An archive, a model, and the outcome of a first run."""

    bids: Path
    out: Path
    bundle: Path
    config: Config
    counts: dict[str, int]

    def scan(self, name: str) -> Path:
        """The image of the archive."""
        return self.bids / name.partition("_")[0] / "anat" / f"{name}.nii.gz"

    def derivative(self, name: str) -> Path:
        """Its harmonized counterpart."""
        subject, suffix = name.split("_")
        return self.out / subject / "anat" / f"{subject}_desc-harmonized_{suffix}.nii.gz"

    def again(self, **other: Any) -> Job:
        """The same job, but for some fields."""
        return replace(Job(str(self.bids), str(self.out), str(self.bundle), self.config), **other)

    def ledger(self) -> dict[str, dict]:
        """Rows by image."""
        return {row["image_id"]: row for row in read_ledger(self.out / "ledger.parquet")}


@pytest.fixture(autouse=True)
def _levels_as_before() -> Iterator[None]:
    """`main` sets levels of loggers; other tests must not inherit them."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.Logger.manager.loggerDict))]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Save as integers with a slope, with other sform and qform codes than nibabel's defaults."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 2)
    image.set_qform(affine, 3)
    nib.save(image, path)


def oblique() -> np.ndarray:
    """Axes of an anisotropic, left-handed grid turned by 17 degrees."""
    c, s = np.cos(np.deg2rad(17)), np.sin(np.deg2rad(17))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * [-4.0, 5.0, 6.5]


def write_archive(bids: Path) -> None:
    """One good subject, and one for each possible fault; no sites."""
    anatomy = simulate_anatomy(Person(1), 6.0)
    middle = anatomy.affine @ np.append(np.argwhere(anatomy.brain).mean(0), 1)
    shape, native = (52, 42, 30), np.eye(4)
    native[:3, :3] = oblique()
    native[:3, 3] = middle[:3] - native[:3, :3] @ (np.array(shape) - 1) / 2
    scans = {name: 700 * canonical(anatomy, name, 6.0) for name in ("T1w", "T2w")}
    turned = to_grid(scans["T1w"], anatomy.affine, native, shape)
    inside = to_grid(anatomy.brain.astype(np.float32), anatomy.affine, native, shape) > 0.5

    def put(name: str, data: np.ndarray, affine: np.ndarray = anatomy.affine) -> Path:
        path = bids / name.partition("_")[0] / "anat" / f"{name}.nii.gz"
        save(path, data, affine)
        return path

    (bids / "derivatives/masks").mkdir(parents=True)
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "Odd scans", "BIDSVersion": "1.10.0"}))
    put("sub-01_T1w", turned, native)
    save(bids / "derivatives/masks/sub-01_desc-brain_mask.nii.gz", inside, native)
    put("sub-01_T2w", to_grid(scans["T2w"], anatomy.affine, native, shape), native)
    put("sub-02_FLAIR", scans["T1w"])
    broken = scans["T1w"].copy()
    broken[3, 4, :7] = np.nan
    put("sub-03_T1w", broken)
    put("sub-04_T1w", np.stack([scans["T1w"]] * 3, -1))
    path = put("sub-05_T1w", scans["T1w"])
    path.write_bytes(path.read_bytes()[:3000])


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None, tiny_config: Config, tiny_bundle: Path
) -> FirstRun:
    """The first run."""
    root = tmp_path_factory.mktemp("harmonize")
    bids, out = root / "bids", root / "out"
    write_archive(bids)
    counts = harmonize(Job(str(bids), str(out), str(tiny_bundle), tiny_config))
    return FirstRun(bids, out, tiny_bundle, tiny_config, counts)


def stamps(folder: Path) -> dict[str, int]:
    """Time of every derivative and sidecar."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*_desc-harmonized_*") if path.suffix != ".jpg"}


def test_counts_are_of_all_images(job: FirstRun) -> None:
    assert job.counts == {"done": 2, "failed": 3, "refused": 1}


def test_a_text_to_cite_the_run_by_names_its_model(job: FirstRun) -> None:
    assert bundle_hash(job.bundle) in (job.out / "logs/CITATION.md").read_text(encoding="utf-8")


def test_memory_bounds_the_images_at_a_time_and_says_so(job: FirstRun, caplog: pytest.LogCaptureFixture) -> None:
    """Ray is told that there are at least four CPUs, so that it starts three workers with an image each."""
    tasks = [{"uri": str(job.scan("sub-01_T1w")), "status": "ok", "earlier": {}}] * 8
    settings = replace(job.config.harmonize, slots=3)
    assert pool_layout(settings, tasks).actors == 3
    caplog.set_level(logging.INFO, "mmh_ray")
    layout = pool_layout(replace(settings, memory_gb=4.0), tasks)
    assert (layout.actors, layout.images_per_actor) == (2, 1)
    assert "memory of 4 GB a machine: at most 2 images at a time, 1 in each of 2 workers" in caplog.text


@pytest.mark.parametrize("name", GOOD)
def test_a_derivative_lies_on_the_grid_of_its_scan(job: FirstRun, name: str) -> None:
    source, image = nib.load(job.scan(name)), nib.load(job.derivative(name))
    assert image.shape == source.shape
    np.testing.assert_array_equal(image.affine, source.affine)
    np.testing.assert_array_equal(image.header.get_zooms(), source.header.get_zooms())
    for code in ("sform_code", "qform_code"):
        assert int(image.header[code]) == int(source.header[code])
    assert image.header.get_xyzt_units()[0] == "mm"
    voxels = image.get_fdata()
    assert np.isfinite(voxels).all()
    assert voxels.min() >= 0
    assert voxels.std() > 0


def test_ledger_tells_the_truth_of_every_image(job: FirstRun) -> None:
    rows = job.ledger()
    assert set(rows) == {*GOOD, *REASONS}
    for name, row in rows.items():
        assert row["source"] == str(job.scan(name))
        assert row["model_hash"] == bundle_hash(job.bundle)
        assert row["seconds"] > 0
    for name in GOOD:
        assert (rows[name]["status"], rows[name]["reason"]) == ("done", None)
        assert job.out / rows[name]["output"] == job.derivative(name)
        digest, mask = sha256_file(job.scan(name)), job.bids / "derivatives/masks/sub-01_desc-brain_mask.nii.gz"
        assert rows[name]["input_sha256"] == hash_of([digest, sha256_file(mask)])
    for name, reason in REASONS.items():
        assert rows[name]["status"] == ("refused" if name == "sub-02_FLAIR" else "failed")
        assert reason in problem_of(rows[name]).text
        assert rows[name]["output"] is None
        assert not job.derivative(name).exists()


@pytest.mark.parametrize("name", GOOD)
def test_sidecar_says_what_was_done(job: FirstRun, name: str) -> None:
    sidecar = json.loads(
        job.derivative(name).with_name(job.derivative(name).name.replace(".nii.gz", ".json")).read_text()
    )
    source = f"bids:raw:{job.scan(name).relative_to(job.bids)}"
    mask = "bids:raw:derivatives/masks/sub-01_desc-brain_mask.nii.gz"
    assert sidecar["Sources"] == [source, mask]
    assert sidecar["BrainMask"] == mask
    assert sidecar["SpatialReference"] == source
    assert sidecar["SourceSHA256"] == sha256_file(job.scan(name))
    assert sidecar["Model"]["Hash"] == bundle_hash(job.bundle)
    assert sidecar["Model"]["URI"] == job.bundle.as_uri()
    assert sidecar["Preparation"][0] == "mask: given"
    assert sidecar["Settings"]["planes"] == ["axial"]
    assert sidecar["IntensityMapping"]["High"] > sidecar["IntensityMapping"]["Low"]
    assert sidecar["SourceSite"] is None
    assert sidecar["GeneratedBy"][0]["Name"] == "mmh_ray"


def test_the_dataset_is_described_and_nothing_half_written_is_left(job: FirstRun) -> None:
    description = json.loads((job.out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["Name"] == "Odd scans, harmonized"
    assert description["GeneratedBy"][0]["Name"] == "mmh_ray"
    assert description["SourceDatasets"] == [{"URL": job.bids.resolve().as_uri()}]
    assert description["DatasetLinks"] == {"raw": job.bids.resolve().as_uri()}
    hidden = [path.name for path in job.out.rglob(".*")]
    assert hidden == [".bidsignore"]
    assert len(stamps(job.out)) == 4
    assert not list(job.bids.rglob("*harmonized*"))


def complaints(validator: str, dataset: Path) -> set[tuple[str, str, str]]:
    """Severity, code and place of each issue that the BIDS validator finds in a dataset.

    The validator contains its schema and needs no network.
    """
    done = subprocess.run([validator, "--format", "json", str(dataset)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return {(issue["severity"], issue["code"], issue["location"]) for issue in issues}


@pytest.mark.slow
def test_the_derivatives_are_a_valid_bids_dataset(job: FirstRun, tmp_path: Path) -> None:
    """In the unified domain and, in the same folder, to the look of a given scan in the template's space."""
    beside_python = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    validator = shutil.which("bids-validator-deno", path=beside_python)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed: pip install -e '.[dev]'")
    out = tmp_path / "out"
    shutil.copytree(job.out, out)
    config = replace(job.config, harmonize=replace(job.config.harmonize, space="template"))
    scan = job.scan("sub-01_T1w")
    again = job.again(out=str(out), config=config, participants=("01",), sequences=("T1w",), target_image=str(scan))
    assert harmonize(again) == {"done": 1}
    found = complaints(validator, out)
    of_images = {issue for issue in found if issue[2].endswith(".nii.gz")}
    assert found - of_images == {
        # The authors of the archive are not the authors of its derivatives.
        ("warning", "TOO_FEW_AUTHORS", "/dataset_description.json"),
        # The validator also asks for a description of the table of descriptions.
        ("warning", "SIDECAR_KEY_RECOMMENDED", "/descriptions.tsv"),
    }
    # The scans have a rotated grid, which their derivatives keep.
    assert {issue[:2] for issue in of_images} == {("warning", "AMBIGUOUS_AFFINE")}
    labels = [line.split("\t")[0] for line in (out / "descriptions.tsv").read_text().splitlines()]
    assert labels == ["desc_id", "desc-harmonized", "desc-harmonizedSub01T1W"]
    (out / "sub-01/anat/sub-01_T1w_harmonized.nii.gz").touch()
    assert any(severity == "error" for severity, _, _ in complaints(validator, out))


def arguments(job: FirstRun, *more: str) -> list[str]:
    """Arguments of the command that repeats the first run."""
    fixed = ["harmonize.planes=[axial]", "harmonize.slots=1"]
    return ["harmonize", str(job.bids), str(job.out), "--model", str(job.bundle), *more, *fixed]


@dataclass
class SecondRun:
    """State of the folder before the command was repeated, and the exit code of the repeated command."""

    stamps: dict[str, int]
    ledger: dict[str, dict]
    exit_code: int


HALF_WRITTEN = ".partial-abc.nii.gz"


@pytest.fixture(scope="module")
def second(job: FirstRun) -> SecondRun:
    """The same command once more, in a folder where a killed run has left a half-written file."""
    job.derivative(GOOD[0]).with_name(HALF_WRITTEN).write_bytes(b"half")
    before = stamps(job.out)
    rows = job.ledger()
    return SecondRun(before, rows, main(arguments(job)))


def test_again_skips_what_is_there_and_retries_what_failed(job: FirstRun, second: SecondRun) -> None:
    rows = second.ledger
    assert second.exit_code == 1
    assert stamps(job.out) == second.stamps
    after = job.ledger()
    assert {name: row["status"] for name, row in after.items()} == {
        name: "skipped" if name in GOOD else rows[name]["status"] for name in rows
    }
    assert all(after[name]["seconds"] != rows[name]["seconds"] for name in REASONS)


def test_what_a_killed_run_left_half_written_is_cleared(job: FirstRun, second: SecondRun) -> None:
    assert not job.derivative(GOOD[0]).with_name(HALF_WRITTEN).exists()


def test_status_and_report_are_there_after_a_run(job: FirstRun, second: SecondRun, capsys) -> None:
    assert main(["status", str(job.out)]) == 0
    text = capsys.readouterr().out
    assert "finished, started 20" in text
    assert "6 of 6 images" in text
    assert "1 x sequence FLAIR" in text
    assert main(["status", str(job.bids)]) == 2
    page = (job.out / "report.html").read_text()
    for name in (*GOOD, *REASONS):
        assert name in page
    for name in GOOD:
        figures = sorted(path.name for path in (job.out / "sub-01/figures").glob(f"*{name.split('_')[1]}*"))
        assert [figure.rpartition("_")[2] for figure in figures] == ["after.jpg", "before.jpg"]


@pytest.mark.browser
def test_the_report_of_a_run_in_a_browser(job: FirstRun, second: SecondRun, quiet_page: Any) -> None:
    """The page opens without errors and lists bad images first, with their reasons.

    Filters narrow the list, the pictures before and after load, and the divider between them can be moved.
    """
    page, _ = quiet_page
    page.goto((job.out / "report.html").as_uri())
    names = page.locator("#rows .open")
    assert {*names.all_inner_texts()[:4]} == set(REASONS)
    for reason in REASONS.values():
        assert page.get_by_text(reason.split(";")[0]).first.is_visible()
    page.get_by_label("Find").fill("sub-01")
    assert set(names.all_inner_texts()) == set(GOOD)
    names.first.click()
    for side in ("under", "over"):
        page.wait_for_function(f"document.getElementById('{side}').naturalWidth > 0")
    page.locator("#slider").press("Home")
    assert page.locator("#over").evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 0%)"


def test_retry_failed_looks_at_those_alone(job: FirstRun, second: SecondRun) -> None:
    rows = job.ledger()
    assert harmonize(job.again(retry_failed=True)) == {"failed": 3, "refused": 1}
    after = job.ledger()
    assert {name for name in rows if after[name]["finished"] != rows[name]["finished"]} == set(REASONS)
    assert harmonize(job.again(retry_failed=True, participants=("01",))) == {}


def snapshot(folder: Path) -> dict[str, int]:
    """Modification time of every file and folder."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def check_foreseen(job: FirstRun, folder: Path) -> None:
    """Faults that only preparing a scan reveals: a T2w named T1w, and a damaged mask."""
    scan, mask = (nib.load(job.scan(GOOD[1])), nib.load(job.bids / "derivatives/masks/sub-01_desc-brain_mask.nii.gz"))
    inside = mask.get_fdata() > 0.5
    for subject in ("07", "08"):
        save(folder / f"odd/sub-{subject}/anat/sub-{subject}_T1w.nii.gz", scan.get_fdata(), scan.affine)
        save(folder / f"odd/derivatives/masks/sub-{subject}_desc-brain_mask.nii.gz", inside, scan.affine)
    damaged = folder / "odd/derivatives/masks/sub-08_desc-brain_mask.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    (folder / "odd/dataset_description.json").write_text(json.dumps({"Name": "Odd", "BIDSVersion": "1.10.0"}))
    before = snapshot(folder)
    found = {row["image_id"]: row for row in plan(job.again(bids=str(folder / "odd"), out=str(folder / "new")))}
    assert {name: row["action"] for name, row in found.items()} == {"sub-07_T1w": "refuse", "sub-08_T1w": "fail"}, found
    assert "expected a T1w: fluid darker than grey" in found["sub-07_T1w"]["reason"]
    assert f"{damaged}: unreadable" in found["sub-08_T1w"]["reason"]
    assert snapshot(folder) == before


def test_a_dry_run_tells_what_would_happen_and_writes_nothing(
    job: FirstRun, second: SecondRun, tmp_path: Path, capsys
) -> None:
    expected = {name: "refuse" if name == "sub-02_FLAIR" else "fail" for name in REASONS}
    elsewhere = plan(job.again(out=str(tmp_path / "new")))
    assert {row["image_id"]: row["action"] for row in elsewhere} == expected | dict.fromkeys(GOOD, "harmonize")
    for row in elsewhere:
        assert REASONS.get(row["image_id"], "") in (row["reason"] or "")
    check_foreseen(job, tmp_path)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="not a folder; expected a folder that can be written to"):
        plan(job.again(out=str(job.bundle / "config.json/out")))
    before = snapshot(job.out)
    assert main(arguments(job, "--dry-run")) == 1
    assert snapshot(job.out) == before
    lines = dict(line.split("\t")[1::-1] for line in capsys.readouterr().out.splitlines())
    assert lines == expected | dict.fromkeys(GOOD, "skip")


def test_a_mended_image_is_done_and_the_command_ends_with_0(job: FirstRun) -> None:
    """Subject 05 gets the scan of subject 01; the other images are not processed, and their rows stay."""
    kept, rows = job.scan("sub-05_T1w").read_bytes(), job.ledger()
    shutil.copyfile(job.scan("sub-01_T1w"), job.scan("sub-05_T1w"))
    before = stamps(job.out)
    try:
        assert main(arguments(job, "--participant-label", "01", "sub-05")) == 0
    finally:
        job.scan("sub-05_T1w").write_bytes(kept)
    after = job.ledger()
    assert (after["sub-05_T1w"]["status"], after["sub-05_T1w"]["reason"]) == ("done", None)
    assert job.derivative("sub-05_T1w").is_file()
    assert {path: stamp for path, stamp in stamps(job.out).items() if "sub-05" not in path} == before
    for name in ("sub-02_FLAIR", "sub-03_T1w", "sub-04_T1w"):
        assert after[name] == rows[name]
    assert main(arguments(job, "--participant-label", "05")) == 1  # it is broken again
    assert not list((job.out / "sub-05").rglob("*.*"))  # the derivatives of the mended image have been removed


def test_other_settings_are_done_again(job: FirstRun) -> None:
    before, rows = stamps(job.out), job.ledger()
    other = replace(job.config, harmonize=replace(job.config.harmonize, detail="model", batch_slabs=3))
    assert harmonize(job.again(config=other, participants=("01",), sequences=("T1w",))) == {"done": 1}
    changed = {path for path, stamp in stamps(job.out).items() if stamp != before[path]}
    assert changed == {path for path in before if "sub-01" in path and "T1w" in path}
    assert job.ledger()["sub-01_T1w"]["settings_hash"] != rows["sub-01_T1w"]["settings_hash"]
    assert job.ledger()["sub-01_T2w"] == rows["sub-01_T2w"]


def test_unusable_arguments_leave_nothing_behind(job: FirstRun, tmp_path: Path) -> None:
    elsewhere = job.again(out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"participants \['77'\]"):
        harmonize(replace(elsewhere, participants=("01", "77")))
    with pytest.raises(ConfigError, match="no image left to harmonize"):
        harmonize(replace(elsewhere, participants=("02",), sequences=("T1w",)))
    with pytest.raises(ModelError):
        harmonize(replace(elsewhere, model=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"grid\.spacing_mm=5\.0; expected 6\.0, as in the model's training"):
        harmonize(replace(elsewhere, config=replace(job.config, grid=GridConfig(5.0, (32, 40, 32)))))
    assert main([*arguments(job), "prepare.n4_iterations=[3]"]) == 2
    assert not list(tmp_path.iterdir())
    assert main(["harmonize", str(job.bids), str(job.bids / "sub-01"), "--model", str(job.bundle)]) == 2
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a folder that can be written to"):
        harmonize(job.again(out=str(tmp_path / "file/out")))


def test_a_foreign_folder_is_left_alone(job: FirstRun, tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "someone's"}))
    with pytest.raises(ConfigError, match="holds another dataset"):
        harmonize(job.again(out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_description.json"]
