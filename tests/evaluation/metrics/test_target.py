"""Scoring with a target: each method gets its own output, a failure affects one image, wrong contrast counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmh_ray.evaluation.baselines.image_baselines import BASELINES
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Case, ScoringSettings
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.method_metrics import gather, mean_metrics, shares_of_raw
from mmh_ray.evaluation.metrics.registry import BEST_KNOWN, METRICS, OURS, RAW, REFERENCE, TRUTH
from mmh_ray.evaluation.metrics.scoring import CaseScores, score_case
from mmh_ray.evaluation.metrics.target import TARGET_METRICS, direct_error
from mmh_ray.evaluation.metrics.training import TargetCohort, TrainingImage, training_image
from mmh_ray.imaging.volume import Volume, read_volume, write_volume
from mmh_ray.simulation.anatomy import TISSUES, Person, simulate_anatomy
from mmh_ray.simulation.phantom import canonical

pytestmark = pytest.mark.fast

SPACING = 6.0
GLOBAL = "global"
METHODS = (RAW, "nyul", BEST_KNOWN, TRUTH, GLOBAL, OURS)
SOURCE, ANSWER = "sub-p_ses-a_T1w", "sub-p_ses-b_T1w"


def by_mean(image: np.ndarray, mask: np.ndarray, _affine: np.ndarray) -> np.ndarray:
    """A style vector of two numbers."""
    vector = np.array([image[mask].mean() / np.percentile(image[mask], 99), 0.3])
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A person at two sites: the target's intensities are a power of the source's; methods differ in the exponent."""
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

    return Case("p", "T1w", (record("a", "source"),), is_pictured=True, reference=record("b", "answer"))


@pytest.fixture(scope="module")
def settings(case: Case) -> ScoringSettings:
    assert case.reference is not None
    image = training_image(case.reference, (2,), by_mean)
    nyul = BASELINES["nyul"].from_quantiles([image.before])
    matching = BASELINES[BEST_KNOWN].from_quantiles([image.after])
    return ScoringSettings(
        METHODS,
        {"T1w": {RAW: BASELINES[RAW](), "nyul": nyul, BEST_KNOWN: matching}},
        str(Path(case.reference.uri).parent / "truth"),
        (2,),
        style=by_mean,
        styled_methods=frozenset(METHODS),
        target_cohorts={"T1w": TargetCohort.of([image])},
    )


def with_output(record: ImageRecord, method: str, path: Path) -> ImageRecord:
    return replace(record, outputs={**record.outputs, method: str(path)})


@pytest.fixture(scope="module")
def scores(case: Case, settings: ScoringSettings) -> CaseScores:
    return score_case(case, settings)


def test_the_output_of_the_target_is_scored_as_ours_and_the_global_one_as_global(scores: CaseScores) -> None:
    rows = {image.method: image.values for image in scores.metrics.images}
    assert tuple(rows) == METHODS
    assert not scores.log.problems
    assert all(set(TARGET_METRICS) <= row.keys() <= METRICS.keys() for row in rows.values())
    assert rows[TRUTH]["truth_nrmse_direct"] == pytest.approx(0, abs=1e-6)
    assert rows[TRUTH]["psnr"] > 60
    assert rows[OURS]["psnr"] > 60 > 30 > rows[GLOBAL]["psnr"] > rows[RAW]["psnr"]
    assert rows[OURS]["truth_nrmse_direct"] < 0.01 < rows[GLOBAL]["truth_nrmse_direct"]
    assert rows[OURS]["style_distance"] == pytest.approx(0, abs=1e-6)
    assert rows[OURS]["style_distance"] < rows[GLOBAL]["style_distance"] < rows[RAW]["style_distance"]
    assert rows[OURS]["w1"] < rows[GLOBAL]["w1"] < rows[RAW]["w1"]
    assert rows[RAW]["gradient_correlation"] == pytest.approx(1)
    assert all(0.5 < row["dice_truth"] <= 1 for row in rows.values())


def test_the_target_s_own_scan_is_left_alone_by_what_moves_to_the_target(
    case: Case, settings: ScoringSettings, scores: CaseScores
) -> None:
    moved = {pair.method: pair.values["identity"] for pair in scores.metrics.pairs}
    assert moved.keys() == set(METHODS) - {TRUTH}
    assert moved[RAW] == 0
    assert moved[OURS] < 1e-3 < 0.02 < moved[GLOBAL]
    assert case.reference is not None
    unharmonized = replace(case.reference, outputs={GLOBAL: case.reference.outputs[GLOBAL]})
    found = score_case(replace(case, reference=unharmonized, records=()), settings)
    assert {pair.method for pair in found.metrics.pairs} == set(METHODS) - {OURS, TRUTH}
    assert not found.log.problems


def test_a_bad_output_of_the_target_s_own_scan_is_told(case: Case, settings: ScoringSettings, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    assert case.reference is not None
    broken = replace(case, reference=with_output(case.reference, OURS, tmp_path / "bad.nii.gz"))
    found = score_case(broken, replace(settings, methods=(RAW, OURS)))
    (problem,) = found.log.problems
    assert (problem.method, problem.image_id) == (OURS, ANSWER)
    assert "bad.nii.gz" in problem.reason
    assert [image.method for image in found.metrics.images] == [RAW, OURS]


def test_one_bad_output_costs_one_image(case: Case, settings: ScoringSettings, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    (source,) = case.records
    broken = with_output(replace(source, image_id="sub-q_T1w"), GLOBAL, tmp_path / "bad.nii.gz")
    found = score_case(replace(case, records=(broken, source)), replace(settings, methods=(RAW, GLOBAL)))
    (problem,) = found.log.problems
    assert (problem.method, problem.image_id) == (GLOBAL, "sub-q_T1w")
    assert [image.method for image in found.metrics.images] == [RAW, RAW, GLOBAL]


def test_a_scan_on_another_grid_is_not_compared(case: Case, settings: ScoringSettings, tmp_path: Path) -> None:
    (source,) = case.records
    assert source.mask_uri is not None
    scan, brain = read_volume(source.uri), read_volume(source.mask_uri)
    write_volume(Volume(scan.data[1:], scan.affine), tmp_path / "smaller.nii.gz")
    write_volume(Volume(brain.data[1:], scan.affine), tmp_path / "mask.nii.gz")
    other = replace(source, uri=str(tmp_path / "smaller.nii.gz"), mask_uri=str(tmp_path / "mask.nii.gz"))
    found = score_case(replace(case, records=(other,)), replace(settings, truth=None))
    assert not found.metrics.images
    assert [problem.image_id for problem in found.log.problems] == [SOURCE]
    assert "another grid than" in found.log.problems[0].reason


def test_without_a_cohort_what_needs_none_is_scored(case: Case, settings: ScoringSettings) -> None:
    bare = replace(settings, baselines={"T1w": {RAW: BASELINES[RAW]()}}, truth=None, target_cohorts={})
    found = score_case(case, bare)
    assert [image.method for image in found.metrics.images] == [RAW, GLOBAL, OURS]
    for image in found.metrics.images:
        assert {"psnr", "ssim", "psnr_n4"} <= image.values.keys()
        assert not {"w1", "style_distance", "dice_truth"} & image.values.keys()


def test_the_picture_shows_source_output_reference_and_truth(scores: CaseScores) -> None:
    slices = {name: of_case[0] for name, of_case in scores.pictures.slices.items()}
    assert slices.keys() == {*METHODS, REFERENCE}
    assert np.allclose(slices[OURS], slices[REFERENCE], atol=1e-3)
    assert np.allclose(slices[OURS], slices[TRUTH], atol=1e-3)
    assert not np.allclose(slices[OURS], slices[RAW], atol=0.05)


def test_w1_is_also_given_as_a_share_of_the_raw_scans(scores: CaseScores) -> None:
    metrics = {method: mean_metrics(gather([scores.metrics], method)) for method in (RAW, GLOBAL)}
    shares = shares_of_raw(metrics[GLOBAL], metrics[RAW])
    for name in ("w1", "w1_n4"):
        share = shares[f"{name}_of_raw"]
        assert share.of(np.array([0])) == pytest.approx(metrics[GLOBAL][name].values[0] / metrics[RAW][name].values[0])
    assert shares_of_raw({"psnr": metrics[GLOBAL]["psnr"]}, metrics[RAW]) == {}


def test_contrast_counts_in_the_direct_error() -> None:
    rng = np.random.default_rng(0)
    truth, mask = rng.uniform(0, 1, (8, 8, 8)), np.ones((8, 8, 8), bool)
    assert direct_error(scale_by_percentiles(3 * truth + 7, mask), truth, mask) == pytest.approx(0, abs=1e-6)
    assert direct_error(scale_by_percentiles(truth**2, mask), truth, mask) > 0.3


def test_the_cohort_is_the_mean_of_its_images() -> None:
    record = ImageRecord("sub-1_T1w", "1", "b", "T1w")
    images = []
    for level in (1.0, 3.0):
        quantiles = np.linspace(0, level, 1001)
        images.append(TrainingImage(record, quantiles, quantiles, quantiles, quantiles, {}, np.array([level, 0.0])))
    cohort = TargetCohort.of(images)
    assert cohort.style is not None
    assert cohort.style.tolist() == [2.0, 0.0]
    assert cohort.intensities.size == 2002
