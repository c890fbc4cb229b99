"""Links inside OUT that lead out of it: the image's row fails, and the target of the link is not changed.

OUT itself may be a link.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest

from mmh_ray import demo
from mmh_ray.bids.derivatives import derivative_files
from mmh_ray.bids.ledger import JOURNAL, LEDGER, Journal, current_rows, write_ledger
from mmh_ray.bids.rows import Problem
from mmh_ray.config import Config, HarmonizeConfig, PhantomConfig
from mmh_ray.distributed.evaluate import evaluate
from mmh_ray.distributed.harmonize import harmonize, plan
from mmh_ray.distributed.phantom import make_archive
from mmh_ray.errors import ConfigError
from mmh_ray.harmonization.job import Job, ModelIdentity
from mmh_ray.harmonization.outputs import ledger_row, remove_stale
from mmh_ray.harmonization.target_domain import TargetDomain
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.imaging.volume import Volume
from mmh_ray.shards import keep_only

pytestmark = pytest.mark.fast

UNIFIED = TargetDomain(None, "b" * 64)
IMAGE = "sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz"
PLACES = ("sub-01", "sub-01/anat", "sub-01/figures")
LINKS = ("outside", "dangling", "loop", "up")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory, plain_scan: Volume) -> Path:
    """An archive of one image."""
    path = tmp_path_factory.mktemp("links") / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(plain_scan.data, plain_scan.affine), path)
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with someone else's files, which have the names that a run would write or remove."""
    folder = tmp_path / "outside"
    for base in (folder, folder / "anat", folder / "figures", folder / "sub-01/anat"):
        base.mkdir(parents=True, exist_ok=True)
        for path in derivative_files(IMAGE):
            (base / path.name).write_text("someone's")
        (base / ".partial-x").write_text("someone's")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def link(place: Path, kind: str, outside: Path) -> None:
    """Create a link of this kind at a path in OUT."""
    place.parent.mkdir(parents=True, exist_ok=True)
    targets = {"outside": outside, "dangling": outside / "nowhere", "loop": place, "up": Path("../..")}
    place.symlink_to(targets[kind] if kind != "up" else Path(os.path.relpath(outside, place.parent)))


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("place", PLACES)
def test_an_image_whose_place_is_elsewhere_fails_and_nothing_is_touched_there(
    place: str,
    kind: str,
    scan: Path,
    outside: Path,
    tmp_path: Path,
    tiny_bundle_files: dict[str, bytes],
    tiny_config: Config,
) -> None:
    out = tmp_path / "out"
    link(out / place, kind, outside)
    before = snapshot(outside)
    worker = HarmonizeWorker(tiny_bundle_files, tiny_config, str(out), ModelIdentity("m", "a" * 64), [UNIFIED])
    row = {"image_id": "sub-01_T1w", "uri": str(scan), "site": "north", "sequence": "T1w", "mask_uri": None}
    (failed,) = worker.harmonize(row | {"status": "ok", "reason": None, "earlier": {}})
    assert failed["status"] == "failed"
    assert "a link on the way leads out of" in failed["reason"]
    assert "a place inside that folder" in failed["expected"]
    assert remove_stale(failed, UNIFIED, out, HarmonizeConfig()) == failed
    assert snapshot(outside) == before


@pytest.mark.parametrize("place", PLACES)
def test_a_dry_run_foresees_it(
    place: str, scan: Path, outside: Path, tmp_path: Path, tiny_bundle: Path, tiny_config: Config, ray_stays_away: None
) -> None:
    out = tmp_path / "out"
    link(out / place, "outside", outside)
    (row,) = plan(Job(str(scan.parents[2]), str(out), str(tiny_bundle), tiny_config))
    assert row["action"] == "fail"
    assert "leads out of" in row["reason"]


@pytest.fixture
def ray_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is checked in this process, without Ray."""
    monkeypatch.setattr("mmh_ray.distributed.harmonize.probe_all", lambda *_: None)
    monkeypatch.setattr("mmh_ray.distributed.harmonize.find_problems", lambda *_: {})


@pytest.mark.parametrize("name", [path.name for path in derivative_files(IMAGE)])
def test_stale_files_that_are_links_go_and_what_they_lead_to_stays(name: str, outside: Path, tmp_path: Path) -> None:
    out, target = tmp_path / "out", outside / "anat" / name
    (place,) = (out / path for path in derivative_files(IMAGE) if path.name == name)
    place.parent.mkdir(parents=True)
    place.symlink_to(target)
    source = {"image_id": "sub-01_T1w", "uri": "/bids/sub-01/anat/sub-01_T1w.nii.gz", "site": None, "sequence": "T1w"}
    failed = ledger_row(source, UNIFIED, "failed", Problem("no brain"), input_sha256="d" * 64)
    remove_stale(failed, UNIFIED, out, HarmonizeConfig())
    assert not place.is_symlink()
    assert target.read_text() == "someone's"


def test_logs_that_lead_out_are_refused_before_anything_is_written(
    scan: Path, outside: Path, tmp_path: Path, tiny_bundle: Path, tiny_config: Config
) -> None:
    out = tmp_path / "out"
    link(out / "logs", "outside", outside)
    before = snapshot(outside)
    for act in (harmonize, plan):
        with pytest.raises(ConfigError, match=r"logs/run\.json: a link on the way leads out"):
            act(Job(str(scan.parents[2]), str(out), str(tiny_bundle), tiny_config))
    assert snapshot(outside) == before
    assert [path.name for path in out.iterdir()] == ["logs"]


@pytest.mark.parametrize("make", [os.symlink, os.link, lambda _, path: os.mkfifo(path), lambda _, path: os.mkdir(path)])
def test_a_journal_that_is_anothers_file_is_refused(
    make: Callable[[Path, Path], None], outside: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(outside / ".partial-x", out / JOURNAL)
    before = snapshot(outside)
    with pytest.raises(ConfigError, match=r"a link or no regular file; expected a journal of this folder's own"):
        Journal(out)
    assert current_rows(out) == []
    assert snapshot(outside) == before


@pytest.mark.parametrize("name", [LEDGER, "report.html"])
def test_a_file_of_out_that_is_a_link_is_replaced(
    name: str, scan: Path, outside: Path, tmp_path: Path, tiny_bundle: Path, tiny_config: Config, no_work: None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_ledger(outside / name, [])
    (out / name).symlink_to(outside / name)
    before = snapshot(outside)
    harmonize(Job(str(scan.parents[2]), str(out), str(tiny_bundle), tiny_config))
    assert snapshot(outside) == before
    assert not (out / name).is_symlink()


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that finds all images done."""
    monkeypatch.setattr("mmh_ray.distributed.harmonize.connect", lambda: None)
    monkeypatch.setattr("mmh_ray.distributed.harmonize.run_pool", lambda *_, **__: (row for row in ()))


def test_out_itself_may_be_a_link(
    scan: Path, tmp_path: Path, tiny_bundle: Path, tiny_config: Config, no_work: None, ray_stays_away: None
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    job = Job(str(scan.parents[2]), str(tmp_path / "out"), str(tiny_bundle), tiny_config)
    harmonize(job)
    assert (tmp_path / "disk/report.html").is_file()
    assert [row["action"] for row in plan(job)] == ["harmonize"]


def test_half_written_files_behind_a_link_stay(outside: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / ".partial-link").symlink_to(outside)
    (store / ".partial-file").touch()
    (store / ".partial-folder/inner").mkdir(parents=True)
    before = snapshot(outside)
    keep_only(str(store), set())
    assert list(store.iterdir()) == []
    assert snapshot(outside) == before


def test_an_evaluation_writes_no_pictures_elsewhere(outside: Path, tmp_path: Path) -> None:
    link(tmp_path / "evaluation/figures", "outside", outside)
    with pytest.raises(ConfigError, match="figures/picture: a link on the way leads out of"):
        evaluate({"raw": str(outside)}, str(tmp_path / "evaluation"), Config())


def test_a_phantom_archive_with_a_link_is_not_written_over(outside: Path, tmp_path: Path) -> None:
    config = PhantomConfig(sites=1, subjects_per_site=1, travelers=0)
    about = {"DatasetType": "raw", "GeneratedBy": [{"Name": "mmh_ray.phantom"}]}
    root = tmp_path / "bids"
    link(root / "sub-alder01", "outside", outside)
    described = json.dumps(about | {"Simulation": vars(config)})
    (root / "dataset_description.json").write_text(described)
    with pytest.raises(ConfigError, match="a link on the way leads out of"):
        make_archive(str(root), config)


def test_a_demo_folder_that_is_a_link_is_emptied_and_links_in_it_are_not_followed(
    outside: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / demo.MARKER).touch()
    (disk / "link").symlink_to(outside)
    (tmp_path / "demo").symlink_to(disk)
    before = snapshot(outside)
    with pytest.raises(ConfigError, match="mmh phantom ended with code 2"):
        demo.run(str(tmp_path / "demo"), Config(), lambda _: 2)
    assert snapshot(outside) == before
    assert sorted(path.name for path in disk.iterdir()) == [demo.MARKER, "config.yaml"]
