"""From manifest to store: each image once, bad ones alone, only what changed again."""

import dataclasses
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest

from mmh_ray import shards
from mmh_ray.bids.manifest import read_manifest, to_table, write_manifest
from mmh_ray.config import Config, GridConfig, ModelConfig, PrepareConfig, QualityConfig
from mmh_ray.distributed.prepare import Outcome, PrepareSettings, prepare, prepare_shard, share_out
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.imaging.preprocess import prepare_volume
from mmh_ray.imaging.volume import read_volume, write_volume
from mmh_ray.provenance import sha256_file
from mmh_ray.shards import PreparedStore
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render
from tests.phantoms import computed_tomography

PLAIN = PrepareConfig(n4=False, register=False, shard_volumes=2)
CONFIG = Config(grid=GridConfig(8.0, (24, 24, 24)), prepare=PLAIN)
SETTINGS = PrepareSettings(CONFIG.grid, CONFIG.prepare, CONFIG.quality)
SUBJECTS = ("01", "02", "03")


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([-6.0, 6, 8, 1])), path)


def manifest_row(path: Path, subject: str, sequence: str, mask: Path | None) -> dict:
    row = {"image_id": f"sub-{subject}_{sequence}", "uri": str(path), "subject": subject, "sequence": sequence}
    row |= {"site": "alder", "split": "train", "mask_uri": mask and str(mask), "status": "ok"}
    return row | {"sha256": sha256_file(path)}


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    """Three subjects with T1w, T2w and a mask, and one FLAIR; bright ellipsoids on a grid of their own."""
    found = []
    distance = np.sqrt(
        (np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in (26, 30, 20)], indexing="ij")) ** 2).sum(0)
    )
    for number, subject in enumerate(SUBJECTS):
        mask = tmp_path / f"bids/derivatives/masks/sub-{subject}_desc-brain_mask.nii.gz"
        save(mask, distance < 1)
        for sequence in ("T1w", "T2w", "FLAIR")[: 3 if number == 0 else 2]:
            path = tmp_path / f"bids/sub-{subject}/anat/sub-{subject}_{sequence}.nii.gz"
            rng = np.random.default_rng([number, len(sequence)])
            save(path, 300 * np.maximum(1.1 - distance, 0) + rng.uniform(0, 20, distance.shape))
            found.append(manifest_row(path, subject, sequence, mask))
    return found


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def run(rows: list[dict], store: str, config: Config = CONFIG) -> Outcome:
    manifest = Path(store).with_name("manifest.parquet")
    write_manifest(to_table(rows), manifest)
    return prepare(str(manifest), store, config)


def stamps(store: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(store).iterdir()}


def rewritten(row: dict, factor: float) -> dict:
    volume = read_volume(row["uri"])
    save(Path(row["uri"]), volume.data * factor + 1)
    return row | {"sha256": sha256_file(row["uri"])}


@pytest.mark.ray
def test_voxels_and_facts_of_every_image(rows, store, ray_cluster, caplog):
    caplog.set_level(logging.INFO)
    assert run(rows, store) == Outcome(done=6, skipped=0, failed=0)
    prepared = PreparedStore(store)
    assert [entry["image_id"] for entry in prepared.index] == [
        row["image_id"] for row in rows if "FLAIR" not in row["image_id"]
    ]
    assert any("1 images of FLAIR left out" in message for message in caplog.messages)
    assert any("Preparing: 6/6 images" in message for message in caplog.messages)
    assert len(list(Path(store).glob("shard-*.parquet"))) == 3
    for entry in prepared.index:
        row = next(row for row in rows if row["image_id"] == entry["image_id"])
        mask = read_volume(row["mask_uri"]).data > 0.5
        expected = prepare_volume(read_volume(row["uri"]), mask, CONFIG.grid, CONFIG.prepare)
        image, inside = prepared.read(entry)
        np.testing.assert_allclose(image, expected.image, atol=1e-3)
        np.testing.assert_array_equal(inside, expected.mask)
        np.testing.assert_array_equal(entry["affine"], expected.affine)
        assert (entry["low"], entry["high"]) == (expected.scaling.low, expected.scaling.high)
        assert tuple(entry["steps"]) == expected.steps
        assert (entry["subject"], entry["session"], entry["site"]) == (row["subject"], None, "alder")


@pytest.mark.ray
def test_twice_with_the_same_does_nothing(rows, store, ray_cluster):
    run(rows, store)
    before = stamps(store)
    assert run(rows, store) == Outcome(done=0, skipped=6, failed=0)
    packed = dataclasses.replace(CONFIG, prepare=dataclasses.replace(PLAIN, shard_volumes=1))
    assert run(rows, store, packed) == Outcome(done=0, skipped=6, failed=0)
    assert stamps(store) == before


@pytest.mark.ray
def test_a_bad_image_fails_alone_and_again_until_it_is_mended(rows, store, ray_cluster):
    good = Path(rows[3]["uri"]).read_bytes()
    Path(rows[3]["uri"]).write_bytes(good[:2000])
    bad = rows[3] | {"sha256": sha256_file(rows[3]["uri"])}
    broken = [*rows[:3], bad, *rows[4:]]
    assert run(broken, store) == Outcome(done=5, skipped=0, failed=1)
    entry = next(entry for entry in PreparedStore(store).index if entry["status"] == "failed")
    assert entry["image_id"] == rows[3]["image_id"]
    assert "unreadable" in entry["reason"]
    before = stamps(store)
    assert run(broken, store) == Outcome(done=0, skipped=5, failed=1)
    assert stamps(store) == before
    Path(rows[3]["uri"]).write_bytes(good)
    assert run(rows, store) == Outcome(done=1, skipped=5, failed=0)


@pytest.mark.ray
def test_what_changed_is_done_again_and_what_left_is_gone(rows, store, ray_cluster):
    run(rows, store)
    first = PreparedStore(store)
    changed = [rewritten(rows[0], 2.0), *rows[1:]]
    assert run(changed, store) == Outcome(done=1, skipped=5, failed=0)
    assert PreparedStore(store).data_hash != first.data_hash
    sharper = dataclasses.replace(CONFIG, prepare=dataclasses.replace(PLAIN, upper_percentile=99.0))
    assert run(changed, store, sharper) == Outcome(done=6, skipped=0, failed=0)
    kept = [row for row in changed if row["subject"] == "01"]
    assert run(kept, store, sharper) == Outcome(done=0, skipped=2, failed=0)
    last = PreparedStore(store)
    assert {entry["subject"] for entry in last.index} == {"01"}
    named = {entry["shard"] for entry in last.index}
    assert set(stamps(store)) == named | {"index.parquet"}
    for entry in last.index:
        last.read(entry)


@pytest.mark.ray
def test_the_same_images_give_the_same_files(rows, store, ray_cluster, monkeypatch):
    """Again into another folder, on a cluster that says it has many more CPUs."""
    plain = replace(CONFIG, prepare=replace(PLAIN, shard_volumes=64))
    run(rows, store, plain)
    monkeypatch.setattr("mmh_ray.distributed.prepare.ray.cluster_resources", lambda: {"CPU": 64.0})
    run(rows, f"{store}-again", plain)
    first, again = (
        {path.name: path.read_bytes() for path in Path(place).iterdir()} for place in (store, f"{store}-again")
    )
    assert len(first) == 3
    assert again == first


@pytest.mark.fast
@pytest.mark.parametrize(("images", "size"), [(1, 4), (6, 4), (4096, 4), (4097, 5), (70_000, 64)])
def test_shards_go_by_the_number_of_images_alone(images, size):
    parts = share_out([{}] * images, 64)
    assert sum(map(len, parts)) == images
    assert len(parts[0]) == min(size, images)


@pytest.mark.ray
def test_a_changed_mask_counts_and_a_missing_one_is_a_reason(rows, plain_scan, store, ray_cluster):
    run(rows, store)
    mask = read_volume(rows[0]["mask_uri"])
    save(Path(rows[0]["mask_uri"]), mask.data * (np.arange(26) < 14)[:, None, None])
    assert run(rows, store) == Outcome(done=2, skipped=4, failed=0)
    Path(rows[0]["mask_uri"]).unlink()
    assert run(rows, store) == Outcome(done=0, skipped=4, failed=2)
    scan = Path(rows[0]["uri"])
    write_volume(plain_scan, scan)
    assert run([manifest_row(scan, "01", "T1w", None)], store) == Outcome(done=1, skipped=0, failed=0)


@pytest.mark.ray
def test_a_new_split_is_taken_over_without_new_voxels(rows, store, ray_cluster):
    run(rows, store)
    before = stamps(store)
    assert run([row | {"split": "val"} for row in rows], store) == Outcome(done=0, skipped=6, failed=0)
    assert {entry["split"] for entry in PreparedStore(store).index} == {"val"}
    after = stamps(store)
    assert before.pop("index.parquet") != after.pop("index.parquet")
    assert after == before


@pytest.mark.ray
def test_shards_of_a_killed_run_are_found_again(rows, store, ray_cluster):
    run(rows, store)
    expected = pq.ParquetFile(Path(store, "index.parquet")).read()
    Path(store, "index.parquet").unlink()
    Path(store, ".partial-killed").mkdir()
    assert run(rows, store) == Outcome(done=0, skipped=6, failed=0)
    assert pq.ParquetFile(Path(store, "index.parquet")).read().equals(expected)
    assert not Path(store, ".partial-killed").exists()


@pytest.mark.fast
def test_a_task_gives_every_exception_to_its_image(rows, store):
    outside = {"image_id": "gone", "uri": str(Path(store, "gone.nii")), "mask_uri": None, "sha256": ""}
    outside |= dict.fromkeys(("subject", "session", "site", "sequence", "split"))
    stale = rows[1] | {"sha256": "of other bytes"}
    given = [row | {"session": None, "provenance": "p"} for row in (rows[0], outside, stale)]
    found = prepare_shard(given, store, SETTINGS)
    entries = {entry["image_id"]: entry for entry in found}
    assert entries["sub-01_T1w"]["status"] == "ok"
    assert (
        "gone.nii: No such file or directory; expected the file that was found there before. Put"
        in entries["gone"]["reason"]
    )
    assert "changed since the manifest" in entries["sub-01_T2w"]["reason"]
    shards.write_index(store, entries.values())
    assert [entry["status"] for entry in PreparedStore(store).index] == ["failed", "ok", "failed"]


@pytest.mark.slow
def test_what_harmonize_would_refuse_is_no_training_volume(plain_scan, store, tmp_path, monkeypatch):
    """Two images that the template fits badly and well, by the figures."""
    found = iter(({"registration": 0.1}, {"registration": 0.9}))
    monkeypatch.setattr("mmh_ray.distributed.prepare.describe_scan", lambda *_: next(found))
    path = tmp_path / "sub-01_PDw.nii.gz"
    write_volume(plain_scan, path)
    row = manifest_row(path, "01", "PDw", None) | {"session": None, "provenance": "p"}
    given = [row, row | {"image_id": "sub-02_PDw"}]
    first, second = (prepare_shard([row], store, SETTINGS)[0] for row in given)
    assert (first["status"], second["status"]) == ("failed", "ok")
    assert "ICBM-152 template fits with a quality of 0.10; expected 0.2 or more" in first["reason"]


def head(seed: int, sequence: str) -> nib.Nifti1Image:
    """A simulated head with its scalp, at 4 mm."""
    anatomy = simulate_anatomy(Person(seed, scalp=True), 4.0)
    data = render(anatomy, SITES[0], sequence, np.random.default_rng(seed), 4.0)
    return nib.Nifti1Image(data.astype(np.float32), anatomy.affine)


@pytest.mark.slow
def test_what_is_no_adults_mri_is_no_training_volume(tmp_path):
    """Registered for real: a CT and a T2w under a T1w's name are rows with the reason they are refused for."""
    tomography = computed_tomography(5, 4.0)
    scans = {
        "01": head(5, "T1w"),
        "02": nib.Nifti1Image(tomography.data, tomography.affine),
        "03": head(5, "T2w"),
    }
    rows = []
    for subject, image in scans.items():
        path = tmp_path / f"sub-{subject}_T1w.nii.gz"
        nib.save(image, path)
        rows.append(manifest_row(path, subject, "T1w", None) | {"session": None, "provenance": "p"})
    found = prepare_shard(
        rows, str(tmp_path / "store"), PrepareSettings(CONFIG.grid, PrepareConfig(n4=False), QualityConfig())
    )
    reasons = {entry["subject"]: entry["reason"] for entry in found}
    assert reasons.pop("01") is None
    assert "ICBM-152 template fits with a quality of" in reasons["02"] or "expected a T1w: " in reasons["02"], reasons
    assert "expected a T1w: " in reasons["03"]


@pytest.mark.fast
def test_unusable_arguments_are_refused_before_ray_starts(rows, store, tmp_path):
    with pytest.raises(DataError, match="images of PDw"):
        run(rows, store, Config(model=ModelConfig(sequences=("PDw",))))
    with pytest.raises(ConfigError, match="new folder"):
        run(rows, str(tmp_path / "bids"))
    assert len(read_manifest(tmp_path / "manifest.parquet")) == 7
