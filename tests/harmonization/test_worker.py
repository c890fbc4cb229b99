"""The actor of the batch job without Ray: running out of memory, and the contents of the ledger row."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import mmh_ray.harmonization.harmonizer
from mmh_ray import staging
from mmh_ray.bids.derivatives import derivative_files, sidecar_path
from mmh_ray.bids.rows import Problem, problem_of
from mmh_ray.config import Config
from mmh_ray.harmonization import worker as worker_module
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.job import ModelIdentity
from mmh_ray.harmonization.outputs import LEFT, is_current, ledger_row, remove_stale
from mmh_ray.harmonization.target_domain import TargetDomain
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.volume import Volume, read_volume, write_volume
from mmh_ray.models.bundle import Bundle, load_bundle
from mmh_ray.models.target.adapter import SiteStyle, attach, state_of
from mmh_ray.models.target.bundle import Target
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical
from tests.phantoms import computed_tomography

pytestmark = pytest.mark.fast

MODEL = ModelIdentity("models:/m/1", "a" * 64)
UNIFIED = TargetDomain(None, "b" * 64)
KNOTS = np.linspace(0, 1, 65)


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    """Settings with batches that can be halved."""
    return replace(tiny_config, harmonize=replace(tiny_config.harmonize, batch_slabs=8))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory, plain_scan: Volume) -> Path:
    """A brain in a file whose folder has a space and a letter beyond ASCII in its name."""
    path = tmp_path_factory.mktemp("Étude 1") / "sub-01_T1w.nii.gz"
    nib.save(nib.Nifti1Image(plain_scan.data, plain_scan.affine), path)
    return path


def row_of(path: Path, **more: Any) -> dict[str, Any]:
    """A task as the driver sends it."""
    fixed = {"image_id": "sub-01_T1w", "uri": str(path), "site": "north", "sequence": "T1w", "mask_uri": None}
    return fixed | {"status": "ok", "reason": None, "earlier": {}} | more


@pytest.mark.slow
def test_a_row_describes_the_result_and_the_next_run_skips_the_image(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path
) -> None:
    worker = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path), MODEL, [UNIFIED])
    (done,) = worker.harmonize(row_of(scan))
    assert (done["status"], done["reason"], done["site"]) == ("done", None, "north"), done
    assert done["output"] == "sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz"
    earlier = done | {"model_hash": MODEL.hash}
    (again,) = worker.harmonize(row_of(scan, earlier={None: earlier}))
    assert (again["status"], again["flags"]) == ("skipped", done["flags"])
    assert is_current(earlier, tmp_path, done["input_sha256"], MODEL.hash, UNIFIED)
    assert not is_current(earlier, tmp_path, "another file's digest", MODEL.hash, UNIFIED)
    other = TargetDomain(None, "c" * 64)
    assert not is_current(earlier, tmp_path, done["input_sha256"], MODEL.hash, other)
    (masked,) = worker.harmonize(row_of(scan, earlier={None: earlier}, mask_uri=str(scan)))
    assert (masked["status"], masked["input_sha256"] == done["input_sha256"]) == ("done", False), masked  # new mask
    (replaced,) = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path), MODEL, [other]).harmonize(row_of(scan))
    assert replaced["output"] == done["output"]
    assert not is_current(earlier, tmp_path, done["input_sha256"], MODEL.hash, UNIFIED)  # known from the sidecar


@pytest.mark.slow
def test_unchanged_files_are_not_read_again(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any change to a scan or mask is noticed, also one that keeps its size and sets its time back."""
    hashed: list[str] = []
    hash_file = worker_module.sha256_file

    def hash_and_note(path: str) -> str:
        hashed.append(path)
        return hash_file(path)

    monkeypatch.setattr(worker_module, "sha256_file", hash_and_note)
    path = tmp_path / "sub-01_T1w.nii"
    mask = tmp_path / "mask.nii"
    volume = read_volume(scan)
    write_volume(volume, path)
    write_volume(volume.like((volume.data > 0).astype(np.float32)), mask)
    worker = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path / "out"), MODEL, [UNIFIED])

    def run(earlier: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
        hashed.clear()
        rows = {} if earlier is None else {None: earlier | {"model_hash": MODEL.hash}}
        (row,) = worker.harmonize(row_of(path, mask_uri=str(mask), earlier=rows))
        return row, bool(hashed)

    fresh, _ = run(None)
    assert (fresh["status"], fresh["input_state"]) == ("done", None), fresh
    monkeypatch.setattr(staging, "SETTLED_S", -1)  # as an hour later
    settled, is_read = run(fresh)
    assert (settled["status"], is_read) == ("skipped", True)
    again, is_read = run(settled)
    assert (again["status"], is_read) == ("skipped", False)
    assert (again["input_sha256"], again["input_state"]) == (fresh["input_sha256"], settled["input_state"])
    sidecar_path(tmp_path / "out" / again["output"]).unlink()
    redone, is_read = run(again)
    assert (redone["status"], is_read) == ("done", True)
    for changed in (path, mask):
        before = changed.stat()
        content = bytearray(changed.read_bytes())
        content[-1] ^= 1
        changed.write_bytes(content)
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
        row, is_read = run(redone)
        assert is_read
        assert row["input_sha256"] != redone["input_sha256"]
        redone = row


@pytest.mark.parametrize("what", ["uri", "mask_uri"])
def test_a_file_that_is_replaced_between_hash_and_reading_fails_and_leaves_nothing(
    tiny_bundle_files: dict[str, bytes],
    config: Config,
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    paths = {"uri": tmp_path / "sub-01_T1w.nii.gz", "mask_uri": tmp_path / "mask.nii.gz"}
    for path in paths.values():
        shutil.copy(scan, path)
    read = worker_module.read_volume

    def replace_and_read(path: str) -> Volume:
        volume = read(path)
        write_volume(volume.like(2 * volume.data), paths[what])
        return volume

    monkeypatch.setattr(worker_module, "read_volume", replace_and_read)
    out = tmp_path / "out"
    worker = HarmonizeWorker(tiny_bundle_files, config, str(out), MODEL, [UNIFIED])
    (row,) = worker.harmonize(row_of(paths["uri"], mask_uri=str(paths["mask_uri"])))
    assert (row["status"], "written to while it was read" in row["reason"]) == ("failed", True), row["reason"]
    assert not out.exists()


@pytest.mark.parametrize(("digest", "gone"), [("d" * 64, True), (None, False)], ids=["looked at", "not even looked at"])
def test_outputs_of_an_image_that_fails_now_are_removed_if_the_scan_was_read(
    tmp_path: Path, config: Config, digest: str | None, gone: bool
) -> None:
    image = tmp_path / "sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz"
    paths = derivative_files(image)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    scan = tmp_path / "sub-01_T1w.nii.gz"
    sidecar_path(image).write_text(json.dumps({"Sources": [scan.as_uri()], "Provenance": {"model_hash": "of another"}}))
    second = ledger_row(
        row_of(scan, image_id="sub-01/anat/sub-01_T1w.nii.gz"), UNIFIED, "failed", Problem("second file")
    )
    assert remove_stale(second, UNIFIED, tmp_path, config.harmonize) == second
    assert all(path.exists() for path in paths)  # they belong to the first file
    failed = ledger_row(row_of(scan), UNIFIED, "failed", Problem("no more"), input_sha256=digest)
    told = remove_stale(failed, UNIFIED, tmp_path, config.harmonize)
    assert [path.exists() for path in paths] == [not gone] * 4
    assert told == failed if gone else (told["reason"], tmp_path / told["output"]) == (f"no more {LEFT}", image)
    assert not is_current(told, tmp_path, "f" * 64, "of another", UNIFIED)


def test_after_an_error_files_of_another_run_are_kept(tmp_path: Path) -> None:
    sidecar, image, picture = (tmp_path / name for name in ("image.json", "image.nii.gz", "image.jpg"))
    sidecar.touch()

    def write() -> None:
        with worker_module.all_or_none(sidecar, image, picture) as written:
            assert not sidecar.exists()  # that of an earlier run
            image.touch()
            written.append(image)
            picture.touch()  # by another run
            raise OSError("renamed away")

    with pytest.raises(OSError, match="renamed away"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["image.jpg"]


@pytest.mark.slow
def test_all_domains_of_an_image_share_one_global_pass(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def domain(site: str, sequence: str, height: float) -> TargetDomain:
        styles = {sequence: SiteStyle(KNOTS, height * KNOTS, np.linspace(0, 1, 257), 0.0)}
        return TargetDomain(
            Target(site, styles, site * 12, f"models:/mmh-target-{site}/1", {"site": site}, {}, 0), site * 16
        )

    passes: list[str] = []
    sample = Harmonizer.sample_planes
    monkeypatch.setattr(Harmonizer, "sample_planes", lambda *given: (passes.append("pass"), sample(*given))[1])
    domains = [UNIFIED, domain("dim", "T1w", 0.5), domain("blind", "T2w", 1.0)]
    worker = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path), MODEL, domains)
    worker.harmonizer.bundle.facts["training"]["counts"] = {"north": {"T2w": 3}, "south": {"T1w": 3}}
    rows = {row["target"]: row for row in worker.harmonize(row_of(scan))}
    assert passes == ["pass"]
    assert {name: row["status"] for name, row in rows.items()} == {None: "done", "dim": "done", "blind": "refused"}
    assert problem_of(rows["blind"]).text.startswith(
        "sequence T1w; expected a sequence of target blind: T2w. Leave it out"
    )
    assert rows["dim"]["image_id"] == "sub-01_T1w@dim"
    assert rows["dim"]["output"] == "sub-01/anat/sub-01_desc-harmonizedDim_T1w.nii.gz"
    unified, dim = (nib.load(tmp_path / rows[name]["output"]).get_fdata() for name in (None, "dim"))
    assert 0.4 < dim[unified > 0.2].mean() / unified[unified > 0.2].mean() < 0.6
    sidecar = json.loads((tmp_path / rows["dim"]["output"].replace(".nii.gz", ".json")).read_text())
    assert (sidecar["TargetSite"], sidecar["TargetModel"]["URI"]) == ("dim", "models:/mmh-target-dim/1")
    assert sidecar["SourceSiteSeenInTraining"] is False
    assert sidecar["Units"].startswith("unit intensity of the target site")
    worker.harmonizer.bundle.facts["training"]["counts"] = {"north": {"T1w": 3}}
    again = {row["target"]: row for row in worker.harmonize(row_of(scan))}
    sidecar = json.loads((tmp_path / again[None]["output"].replace(".nii.gz", ".json")).read_text())
    assert sidecar["SourceSiteSeenInTraining"] is True
    assert sidecar["Units"].startswith("unit intensity of the unified domain")


@pytest.mark.slow
def test_targets_share_the_pass_without_an_adapter(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle_of(tiny_bundle_files, tmp_path)
    attach(bundle.model, "blank", 2)
    blank, style = state_of(bundle.model, "blank"), SiteStyle(KNOTS, KNOTS, np.linspace(0, 1, 257), 0.0)
    strong = [{key: level * torch.ones_like(value) for key, value in blank.items()} for level in (0.0, 0.1)]
    targets = [Target(f"t{i}", {"T1w": style}, f"{i}" * 64, "", {}, {"T1w": w}, 2) for i, w in enumerate(strong)]
    domains = [TargetDomain(target, target.hash) for target in targets]
    worker = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path / "out"), MODEL, domains)
    passes: list[str] = []

    def counted(run: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        return lambda *given: (passes.append("pass"), run(*given))[1]

    for name in ("unify_planes", "estimate_planes"):
        run = getattr(mmh_ray.harmonization.harmonizer, name)
        monkeypatch.setattr(mmh_ray.harmonization.harmonizer, name, counted(run))
    rows = worker.harmonize(row_of(scan))
    assert [row["status"] for row in rows] == ["done", "done"]
    assert len(passes) == len(domains) + 2
    one, other = (nib.load(tmp_path / "out" / row["output"]).get_fdata() for row in rows)
    assert not np.allclose(one, other, atol=1e-3)


@pytest.mark.slow
def test_the_sidecars_matrix_brings_an_image_in_template_space_back_to_its_scan(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is tilted by 20 degrees and shifted; the model changes nothing."""
    nod, given = np.eye(4), nib.load(scan)
    nod[:3, :3] = Rotation.from_euler("x", 20, degrees=True).as_matrix()
    nod[:3, 3] = 12, -20, 30
    path = tmp_path / "sub-01_T1w.nii.gz"
    nib.save(nib.Nifti1Image(given.get_fdata(dtype=np.float32), nod @ given.affine), path)
    monkeypatch.setattr(Harmonizer, "sample_planes", lambda _self, prepared, _label: prepared.image[None])
    placed = replace(config, harmonize=replace(config.harmonize, space="template"))
    (done,) = HarmonizeWorker(tiny_bundle_files, placed, str(tmp_path / "out"), MODEL, [UNIFIED]).harmonize(
        row_of(path)
    )
    assert done["status"] == "done", done["reason"]
    image = nib.load(tmp_path / "out" / done["output"])
    matrix = np.array(
        json.loads(sidecar_path(tmp_path / "out" / done["output"]).read_text())["Registration"]["TemplateToScan"]
    )

    def likeness(to_scan: np.ndarray) -> float:
        back = to_grid(image.get_fdata(dtype=np.float32), to_scan @ image.affine, nod @ given.affine, given.shape)
        return float(np.corrcoef(back.ravel(), given.get_fdata().ravel())[0, 1])

    assert likeness(matrix) > 0.97
    assert likeness(np.linalg.inv(matrix)) < 0.7


def load_bundle_of(files: dict[str, bytes], folder: Path) -> Bundle:
    """The bundle of these files."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return load_bundle(folder)


@pytest.mark.slow
def test_another_sequence_under_this_name_is_refused(
    tiny_bundle_files: dict[str, bytes], config: Config, tmp_path: Path
) -> None:
    anatomy = simulate_anatomy(Person(1), 6.0)
    path = tmp_path / "sub-01_T1w.nii.gz"
    nib.save(nib.Nifti1Image((700 * canonical(anatomy, "T2w", 6.0)).astype(np.float32), anatomy.affine), path)
    (found,) = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path / "out"), MODEL, [UNIFIED]).harmonize(
        row_of(path)
    )
    assert found["status"] == "refused"
    assert "expected a T1w: fluid darker than grey by 0.1" in problem_of(found).text
    assert not (tmp_path / "out").exists()


HEAD = "expected 0.2 or more. Check that it is an MRI of an adult's head"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("CT", HEAD), ("an infant's size", HEAD)],  # the tests of the registration cover more kinds
)
def test_anything_but_mri_of_adults_is_refused(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path, kind: str, expected: str
) -> None:
    head = read_volume(scan)
    shown = {
        "CT": computed_tomography(1, 6.0),
        "an infant's size": Volume(head.data, np.diag([0.65, 0.65, 0.65, 1]) @ head.affine),
    }[kind]
    path = tmp_path / "sub-01_T1w.nii.gz"
    write_volume(shown, path)
    (found,) = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path / "out"), MODEL, [UNIFIED]).harmonize(
        row_of(path)
    )
    assert found["status"] == "refused", found["reason"]
    assert expected in problem_of(found).text
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fits", [2, 0])
def test_where_memory_runs_out_batches_are_halved_then_the_row_fails(
    tiny_bundle_files: dict[str, bytes],
    config: Config,
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fits: int,
) -> None:
    tried: list[int] = []
    infer = Harmonizer.infer

    def hungry(self: Harmonizer, *arguments: Any) -> Any:
        tried.append(self.settings.batch_slabs)
        if self.settings.batch_slabs > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return infer(self, *arguments)

    monkeypatch.setattr(Harmonizer, "infer", hungry)
    worker = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path), MODEL, [UNIFIED])
    (found,) = worker.harmonize(row_of(scan))
    assert tried == {2: [8, 4, 2], 0: [8, 4, 2, 1]}[fits]
    if fits:
        assert found["status"] == "done", found["reason"]
        return
    assert found["status"] == "failed"
    assert "not even one slab at a time" in found["reason"]
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_of_memory_is_not_tried_again(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Harmonizer, "infer", broken)
    (found,) = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path), MODEL, [UNIFIED]).harmonize(row_of(scan))
    assert problem_of(found).text.startswith(f"{scan}: RuntimeError: shapes differ; expected no error. ")


@pytest.mark.slow
def test_a_file_that_cannot_be_written_whole_fails_the_image_and_leaves_nothing(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path
) -> None:
    worker, before = (
        HarmonizeWorker(tiny_bundle_files, config, str(tmp_path), MODEL, [UNIFIED]),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (16 * 1024, before[1])
    )  # as with a quota or a full disk: half of it is written
    try:
        (found,) = worker.harmonize(row_of(scan))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found["status"] == "failed"
    assert "File too large" in found["reason"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Gives up root's right to read and write everything, if root runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def shared_folder(scan: Path) -> Iterator[tuple[Path, Path]]:
    """A folder that everybody may enter, and the scan in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        copy = Path(shutil.copy(scan, folder))
        copy.chmod(0o644)
        yield folder, copy
        folder.chmod(0o755)


def test_a_scan_that_may_not_be_read_fails_alone(
    tiny_bundle_files: dict[str, bytes], config: Config, shared_folder: tuple[Path, Path], tmp_path: Path
) -> None:
    _, scan = shared_folder
    scan.chmod(0)
    worker = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path), MODEL, [UNIFIED])
    with as_nobody():
        (found,) = worker.harmonize(row_of(scan))
    assert found["status"] == "failed"
    assert problem_of(found).text.startswith(f"{scan}: Permission denied; expected the right to read")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_output_that_became_read_only_fails_the_image(
    tiny_bundle_files: dict[str, bytes], config: Config, shared_folder: tuple[Path, Path]
) -> None:
    folder, scan = shared_folder
    worker = HarmonizeWorker(tiny_bundle_files, config, str(folder), MODEL, [UNIFIED])
    folder.chmod(0o555)
    with as_nobody():
        (found,) = worker.harmonize(row_of(scan))
    assert found["status"] == "failed"
    assert "Permission denied; expected the right to read and write it" in problem_of(found).text
    assert [path.name for path in folder.iterdir()] == [scan.name]


@pytest.mark.slow
def test_one_image_is_prepared_and_another_written_while_the_model_works(
    tiny_bundle_files: dict[str, bytes], config: Config, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step waits for one of the other image, so the test passes only if the images overlap.

    The model starts on the first image when the second is ready. The first image is finished when the model has the
    second.
    """
    ready, infer, finish = Harmonizer.ready, Harmonizer.infer, Harmonizer.finish
    second_is_ready, model_has_second = threading.Event(), threading.Event()
    prepared: list[str] = []
    model: list[str] = []

    def noted_ready(*arguments: Any) -> Any:
        found = ready(*arguments)
        prepared.append("ready")
        if len(prepared) == 2:
            second_is_ready.set()
        return found

    def waiting_infer(*arguments: Any) -> Any:
        model.append("takes")
        if model.count("takes") == 2:
            model_has_second.set()
        assert second_is_ready.wait(60)
        found = infer(*arguments)
        model.append("gives")
        return found

    def waiting_finish(*arguments: Any) -> Any:
        assert model_has_second.wait(60)
        return finish(*arguments)

    for name, step in {"ready": noted_ready, "infer": waiting_infer, "finish": waiting_finish}.items():
        monkeypatch.setattr(Harmonizer, name, step)
    worker = HarmonizeWorker(tiny_bundle_files, config, str(tmp_path), MODEL, [UNIFIED])
    second = shutil.copy(scan, scan.with_name("sub-02_T1w.nii.gz"))
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(
            itertools.chain(*pool.map(worker.harmonize, [row_of(scan), row_of(second, image_id="sub-02_T1w")]))
        )
    assert [(row["status"], row["reason"]) for row in outcomes] == [("done", None)] * 2
    assert model == ["takes", "gives"] * 2  # one image at a time
