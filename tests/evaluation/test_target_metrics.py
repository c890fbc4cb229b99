"""Scoring against a target: every method is what it says, what fails stands alone, and the truth decides about contrast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.target_metrics import (
    GLOBAL,
    MATCHED,
    METHODS,
    NYUL,
    OURS,
    RAW,
    TRUTH,
    CohortImage,
    TargetCase,
    TargetCohort,
    TargetMetrics,
    TargetSettings,
    cohort_image,
    direct_error,
    middle_slices,
    score_target,
)
from mmh_ray.imaging.volume import Volume, write_volume
from mmh_ray.simulation.anatomy import TISSUES, Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

pytestmark = pytest.mark.fast

SPACING = 6.0


def by_mean(image: np.ndarray, mask: np.ndarray, _affine: np.ndarray) -> np.ndarray:
    """A style vector of two numbers."""
    vector = np.array([image[mask].mean() / np.percentile(image[mask], 99), 0.3])
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> TargetCase:
    """A person at two sites: the target's look is a power of the source's; global output and target output are told apart."""
    folder, anatomy = tmp_path_factory.mktemp("scans"), simulate_anatomy(Person(2), SPACING)
    plain = canonical(anatomy, "T1w", SPACING)
    looks = {"mask": anatomy.brain.astype(np.float32), "source": 500 * plain, "answer": 90 * plain**2}
    looks |= {"global": plain**1.3, "moved": plain**2}
    for name, data in looks.items():
        write_volume(Volume(data.astype(np.float32), anatomy.affine), folder / f"{name}.nii.gz")
    stem = folder / "truth" / "sub-p" / "anat"
    stem.mkdir(parents=True)
    (folder / "truth/sub-p/ses-b/anat").mkdir(parents=True)
    write_volume(Volume(plain.astype(np.float32), anatomy.affine), stem / "sub-p_desc-noisefree_T1w.nii.gz")
    answer = Volume((plain**2).astype(np.float32), anatomy.affine)
    write_volume(answer, folder / "truth/sub-p/ses-b/anat/sub-p_ses-b_desc-noisefree_T1w.nii.gz")
    for tissue in ("CSF", "GM", "WM"):
        share = Volume(anatomy.fractions[TISSUES.index(tissue)], anatomy.affine)
        write_volume(share, stem / f"sub-p_label-{tissue}_probseg.nii.gz")

    def record(site: str, name: str) -> ImageRecord:
        return ImageRecord(
            f"sub-p_ses-{site}_T1w",
            "p",
            site,
            "T1w",
            session=site,
            uri=str(folder / f"{name}.nii.gz"),
            mask_uri=str(folder / "mask.nii.gz"),
            outputs={GLOBAL: str(folder / "global.nii.gz"), OURS: str(folder / "moved.nii.gz")},
        )

    return TargetCase("p", "T1w", record("b", "answer"), (record("a", "source"),))


def with_output(record: ImageRecord, method: str, path: Path) -> ImageRecord:
    return replace(record, outputs={**record.outputs, method: str(path)})


def scored(case: TargetCase, settings: TargetSettings) -> list[TargetMetrics]:
    """Metrics of the scans of other sites."""
    return [metrics for metrics in score_target(case, settings) if metrics.record.site != case.target.site]


@pytest.fixture(scope="module")
def settings(case: TargetCase) -> TargetSettings:
    bare = TargetSettings((2,), by_mean, truth=str(Path(case.target.uri).parent / "truth"), has_slices=True)
    cohort = TargetCohort.of([cohort_image(case.target, bare)])
    return replace(bare, cohorts={"T1w": cohort})


def test_the_output_of_the_target_is_scored_as_ours_and_the_global_one_as_global(
    case: TargetCase, settings: TargetSettings
) -> None:
    found = {metrics.method: metrics for metrics in scored(case, settings)}
    assert tuple(found) == METHODS
    rows = {method: metrics.values for method, metrics in found.items()}
    assert rows[TRUTH]["truth_nrmse_direct"] == pytest.approx(0, abs=1e-6)
    assert rows[TRUTH]["psnr"] > 60
    assert rows[OURS]["psnr"] > 60 > 30 > rows[GLOBAL]["psnr"] > rows[RAW]["psnr"]
    assert rows[OURS]["truth_nrmse_direct"] < 0.01 < rows[GLOBAL]["truth_nrmse_direct"]
    assert rows[OURS]["style_distance"] == pytest.approx(0, abs=1e-6)
    assert rows[OURS]["style_distance"] < rows[GLOBAL]["style_distance"] < rows[RAW]["style_distance"]
    assert rows[OURS]["w1"] < rows[GLOBAL]["w1"] < rows[RAW]["w1"]
    assert rows[RAW]["gradient_correlation"] == pytest.approx(1)
    assert all(0.5 < row["dice"] <= 1 for row in rows.values())
    assert all(metrics.slices is not None and metrics.slices.shape == (6, 64, 64) for metrics in found.values())


def test_the_target_s_own_scan_is_left_alone_by_what_moves_to_the_target(
    case: TargetCase, settings: TargetSettings
) -> None:
    own = [metrics for metrics in score_target(case, settings) if metrics.record.site == case.target.site]
    moved = {metrics.method: metrics.values["identity"] for metrics in own}
    assert moved[RAW] == 0
    assert moved[OURS] < 1e-3 < 0.02 < moved[GLOBAL]
    unharmonized = replace(case, target=with_output(case.target, OURS, Path("nowhere.nii.gz")))
    others = [metrics for metrics in score_target(unharmonized, settings) if metrics.record.site == case.target.site]
    assert {metrics.method for metrics in others} == set(METHODS) - {OURS, TRUTH}


def test_a_bad_output_of_the_target_s_own_scan_is_told(
    case: TargetCase, settings: TargetSettings, tmp_path: Path
) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    broken = replace(case, target=with_output(case.target, OURS, tmp_path / "bad.nii.gz"))
    (bad,) = [metrics for metrics in score_target(broken, settings) if metrics.reason is not None]
    assert (bad.method, bad.record.site) == (OURS, "b")
    assert "bad.nii.gz" in str(bad.reason)


def test_one_bad_output_costs_one_row(case: TargetCase, settings: TargetSettings, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    (source,) = case.sources
    broken = TargetCase("p", "T1w", case.target, (with_output(source, GLOBAL, tmp_path / "bad.nii.gz"), source))
    rows = scored(broken, settings)
    bad = [metrics for metrics in rows if metrics.reason is not None]
    assert len(rows) == 2 * len(METHODS)
    assert [metrics.method for metrics in bad] == [GLOBAL]
    assert "bad.nii.gz" in str(bad[0].reason)
    unread = TargetCase("p", "T1w", case.target, (replace(source, uri=str(tmp_path / "bad.nii.gz")), source))
    assert sum(metrics.reason is not None for metrics in score_target(unread, settings)) == len(METHODS)


def test_without_a_cohort_what_needs_none_is_scored(case: TargetCase) -> None:
    rows = scored(case, TargetSettings((2,), by_mean))
    assert [metrics.method for metrics in rows] == [RAW, GLOBAL, OURS]
    assert not {MATCHED, NYUL} & {metrics.method for metrics in rows}
    assert all("psnr" in metrics.values and not {"w1", "dice"} & metrics.values.keys() for metrics in rows)


def test_the_picture_shows_source_output_answer_and_truth(case: TargetCase, settings: TargetSettings) -> None:
    rows = middle_slices(case, (2,), settings.truth)
    assert len(rows) == 5
    source, _, moved, answer, truth = (images[0] for images in rows.values())
    assert np.allclose(moved, answer, atol=1e-3)
    assert np.allclose(moved, truth, atol=1e-3)
    assert not np.allclose(moved, source, atol=0.05)


def test_contrast_counts_in_the_direct_error() -> None:
    rng = np.random.default_rng(0)
    truth, mask = rng.uniform(0, 1, (8, 8, 8)), np.ones((8, 8, 8), bool)
    assert direct_error(scale_by_percentiles(3 * truth + 7, mask), truth, mask) == pytest.approx(0, abs=1e-6)
    assert direct_error(scale_by_percentiles(truth**2, mask), truth, mask) > 0.3


def test_the_cohort_is_the_mean_of_its_images() -> None:
    images = [CohortImage(*[np.linspace(0, level, 1001)] * 4, np.array([level, 0.0])) for level in (1.0, 3.0)]
    cohort = TargetCohort.of(images)
    assert cohort.style.tolist() == [2.0, 0.0]
    assert cohort.intensities.size == 2002
