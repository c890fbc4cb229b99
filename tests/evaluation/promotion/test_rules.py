"""A model passes only if it is shown to be better and shown not to be worse; otherwise the reason is given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mmh_ray.config import PromoteConfig
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.metrics.registry import METRICS
from mmh_ray.evaluation.promotion.rules import Evaluated, decide

pytestmark = pytest.mark.fast

RULES = PromoteConfig(improve=("truth_nrmse",), keep=("gradient_correlation",), watch=(), margin=0.05)


CONDITIONS = {"truth": "t", "seed": 0, "cnn": True, "measures": "m"}


def _evaluated(
    name: str = "models:/m/1", subjects: int = 10, data: str = "same", conditions=CONDITIONS, entries=None, **values
) -> Evaluated:
    """Two images per subject; a metric is one number for all subjects or one per subject."""
    rows = []
    for i in range(subjects):
        for site in ("a", "b"):
            facts = {
                "image_id": f"sub-{i}_{site}",
                "subject": str(i),
                "site": site,
                "sequence": "T1w",
                "method": "ours",
            }
            own = {key: value if np.isscalar(value) else value[i] for key, value in values.items()}
            rows.append(facts | dict.fromkeys(METRICS, np.nan) | own)
    about = {"data_hash": data, "conditions": conditions}
    return Evaluated(name, about, pd.DataFrame(rows), {"T1w": entries or {}})


HOLDER = _evaluated(truth_nrmse=np.linspace(0.3, 0.5, 10), gradient_correlation=0.98)


def test_better_and_not_worse_passes():
    model = _evaluated("models:/m/2", truth_nrmse=np.linspace(0.27, 0.48, 10), gradient_correlation=0.97)
    decision = decide(model, HOLDER, RULES)
    assert decision.passed
    assert any("nRMSE to truth" in line and line.endswith("better") for line in decision.lines)
    assert any("gradient corr." in line and line.endswith("kept") for line in decision.lines)


def test_the_same_again_does_not_pass():
    decision = decide(HOLDER, HOLDER, RULES)
    assert not decision.passed
    assert "none of truth_nrmse is shown to be better" in decision.outcome


def test_a_gain_bought_with_a_loss_does_not_pass():
    model = _evaluated("models:/m/2", truth_nrmse=np.linspace(0.2, 0.4, 10), gradient_correlation=0.90)
    decision = decide(model, HOLDER, RULES)
    assert not decision.passed
    assert "a loss beyond 5 % cannot be excluded for T1w gradient corr." in decision.outcome
    assert any(line.endswith("worse") for line in decision.lines)


def test_a_loss_that_is_not_excluded_is_unsure_and_does_not_pass(rng):
    shaky = 0.98 + rng.normal(0, 0.2, 10)
    decision = decide(_evaluated(truth_nrmse=np.linspace(0.2, 0.4, 10), gradient_correlation=shaky), HOLDER, RULES)
    assert not decision.passed
    assert any(line.endswith("unsure") for line in decision.lines)


def test_luck_is_no_improvement(rng):
    lucky = np.linspace(0.3, 0.5, 10) + rng.normal(0, 0.05, 10)
    lucky += np.linspace(0.3, 0.5, 10).mean() - lucky.mean() - 0.005
    assert not decide(_evaluated(truth_nrmse=lucky, gradient_correlation=0.98), HOLDER, RULES).passed


def test_too_few_subjects_prove_nothing():
    few = _evaluated(subjects=5, truth_nrmse=0.1, gradient_correlation=0.98)
    decision = decide(few, _evaluated(subjects=5, truth_nrmse=0.4, gradient_correlation=0.98), RULES)
    assert (decision.passed, decision.outcome) == (False, "not promoted: 5 subjects, at least 6 are needed")


def test_a_probe_below_chance_is_no_better_than_one_at_chance():
    rules = PromoteConfig(improve=("site_probe",), keep=(), watch=())
    half = _evaluated(site_probe=np.tile([0.0, 1.0], 5))
    decision = decide(_evaluated("models:/m/2", site_probe=0.0), half, rules)
    assert not decision.passed
    assert "site probe ↓: 0.500 against 0.500" in decision.lines[0]
    decision = decide(_evaluated("models:/m/2", site_probe=0.0), _evaluated(site_probe=1.0), rules)
    assert decision.passed
    assert "site probe ↓: 0.500 against 1.000" in decision.lines[0]


def test_one_that_was_not_scored_on_every_image_of_the_holder_does_not_pass():
    model = _evaluated("models:/m/2", truth_nrmse=np.linspace(0.1, 0.2, 10), gradient_correlation=0.98)
    lost = model._replace(images=model.images[model.images["image_id"] != "sub-3_b"])
    decision = decide(lost, HOLDER, RULES)
    assert (decide(model, HOLDER, RULES).passed, decision.passed) == (True, False)
    assert "models:/m/2 was not scored on 1 of the 20 images" in decision.outcome
    assert decision.outcome.endswith("sub-3_b")
    assert decide(model, HOLDER._replace(images=HOLDER.images[2:]), RULES).passed


def test_a_guard_that_the_model_lacks_or_lacks_in_part_refuses_it():
    rules = PromoteConfig(improve=("truth_nrmse",), keep=("psnr",), watch=())
    holder = _evaluated(truth_nrmse=0.4, psnr=30.0)
    for values in (np.nan, np.array([np.nan, *[40.0] * 9])):
        decision = decide(_evaluated("models:/m/2", truth_nrmse=0.1, psnr=values), holder, rules)
        assert not decision.passed
        assert "models:/m/2 lacks T1w PSNR dB" in decision.outcome
    pooled = _evaluated(truth_nrmse=0.4, gradient_correlation=0.98, entries={"psnr": {"value": 30.0}})
    decision = decide(_evaluated("models:/m/2", truth_nrmse=0.1, gradient_correlation=0.98), pooled, rules)
    assert "lacks T1w PSNR dB" in decision.outcome


def test_a_metric_that_the_holder_lacks_is_not_used_and_one_guard_must_be_left():
    rules = PromoteConfig(improve=("truth_nrmse",), keep=("gradient_correlation", "psnr"), watch=())
    decision = decide(_evaluated("models:/m/2", truth_nrmse=0.1, gradient_correlation=0.98), HOLDER, rules)
    assert decision.passed
    assert "T1w PSNR dB: not measured for the holder, so not used in the decision" in decision.lines
    decision = decide(_evaluated(truth_nrmse=0.1), _evaluated(truth_nrmse=0.4), rules)
    assert decision.outcome == "not promoted: no metric that must not become worse was measured for T1w"


def test_a_metric_without_values_per_image_is_shown_but_not_used():
    rules = PromoteConfig(improve=("w1",), keep=("gradient_correlation",), watch=())
    model, holder = (_evaluated(gradient_correlation=0.98, entries={"w1": {"value": value}}) for value in (0.001, 0.05))
    decision = decide(model, holder, rules)
    assert not decision.passed
    remark = "a value for the cohort without values per image, so not used in the decision"
    assert f"0.001 against 0.050, {remark}" in decision.lines[1]


def test_a_watched_measure_may_be_unsure_but_not_shown_to_be_worse(rng):
    rules = PromoteConfig(improve=("truth_nrmse",), keep=("gradient_correlation",), watch=("subject_nearest",))
    found = np.array([1.0, 1, 1, 0, 1, 0, 1, 1, 1, 0])
    holder = _evaluated(truth_nrmse=0.4, gradient_correlation=0.98, subject_nearest=found)
    for values, passed, word in ((np.roll(found, 1), True, "no loss shown"), (np.zeros(10), False, "worse")):
        decision = decide(_evaluated(truth_nrmse=0.1, gradient_correlation=0.98, subject_nearest=values), holder, rules)
        assert decision.passed == passed
        assert any("person found" in line and line.endswith(word) for line in decision.lines)
    assert "a loss is shown for T1w person found" in decision.outcome


def test_a_lesion_is_kept_best_at_1():
    rules = PromoteConfig(improve=("truth_nrmse",), keep=("lesion_preservation",), watch=())
    holder = _evaluated(truth_nrmse=0.4, lesion_preservation=0.97)
    for value, passed in ((1.03, True), (0.94, True), (1.2, False), (0.7, False)):
        decision = decide(_evaluated("models:/m/2", truth_nrmse=0.1, lesion_preservation=value), holder, rules)
        assert decision.passed == passed, value
    closer = PromoteConfig(improve=("lesion_preservation",), keep=(), watch=())
    assert decide(
        _evaluated("models:/m/2", lesion_preservation=1.01), _evaluated(lesion_preservation=1.3), closer
    ).passed
    assert not decide(_evaluated("models:/m/2", lesion_preservation=1.3), holder, closer).passed


@pytest.mark.parametrize(("value", "passed"), [(0.956, True), (0.954, False), (0.97, True)])
def test_an_auc_may_lose_the_margins_share_of_a_tenth(value, passed):
    rules = PromoteConfig(improve=("truth_nrmse",), keep=("label_auc_wm",), watch=(), margin=0.05)
    holder = _evaluated(truth_nrmse=0.4, label_auc_wm=0.96)
    assert decide(_evaluated("models:/m/2", truth_nrmse=0.1, label_auc_wm=value), holder, rules).passed == passed


def test_labels_guard_where_the_holder_was_measured_by_them():
    assert {*PromoteConfig().keep} >= {"label_auc_wm", "label_auc_csf", "label_contrast"}
    rules = PromoteConfig(improve=("truth_nrmse",), keep=("label_contrast", "gradient_correlation"), watch=())
    model = _evaluated("models:/m/2", truth_nrmse=0.1, gradient_correlation=0.98)
    decision = decide(model, HOLDER, rules)
    assert decision.passed
    assert "T1w contrast WM/GM: not measured for the holder, so not used in the decision" in decision.lines
    holder = _evaluated(truth_nrmse=0.4, gradient_correlation=0.98, label_contrast=0.3)
    assert "lacks T1w contrast WM/GM" in decide(model, holder, rules).outcome
    half = _evaluated("models:/m/2", truth_nrmse=0.1, gradient_correlation=0.98, label_contrast=0.15)
    assert "a loss beyond 5 % cannot be excluded for T1w contrast WM/GM" in decide(half, holder, rules).outcome


def test_matching_histograms_is_no_improvement():
    assert "w1" not in PromoteConfig().improve
    guards = {*PromoteConfig().keep, *PromoteConfig().watch}
    assert guards >= {
        "hallucination",
        "site_probe_cnn",
        "subject_nearest",
        "dice_truth",
        "age_mae",
        "lesion_preservation",
    }


@pytest.mark.parametrize("name", CONDITIONS)
def test_other_conditions_cannot_be_compared(name):
    with pytest.raises(DataError, match=f"that differ in {name}"):
        decide(_evaluated(conditions={**CONDITIONS, name: "other"}, truth_nrmse=0.1), HOLDER, RULES)
    with pytest.raises(DataError, match="differ in"):
        decide(_evaluated(conditions=None), _evaluated(conditions=None), RULES)


def test_other_images_cannot_be_compared():
    with pytest.raises(DataError, match="on different images"):
        decide(_evaluated(data="other", truth_nrmse=0.1), HOLDER, RULES)


@pytest.mark.parametrize("name", ["nonsense", "noise"])
def test_rules_name_measures_with_a_better_way(name):
    with pytest.raises(ConfigError, match=rf"promote.keep: {name}"):
        decide(HOLDER, HOLDER, PromoteConfig(keep=(name,)))
