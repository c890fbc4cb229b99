"""A model passes when it is shown to be better and shown not to be worse; everything else is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mmh_ray.config import PromoteConfig
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.catalogue import MEASURES
from mmh_ray.evaluation.promotion import Evaluated, decide

pytestmark = pytest.mark.fast

RULES = PromoteConfig(improve=("truth_nrmse",), keep=("gradient_correlation",), margin=0.05)


def _evaluated(name: str = "models:/m/1", subjects: int = 10, data: str = "same", **values) -> Evaluated:
    """Two images a subject; a measure is a number for all or one for every subject."""
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
            rows.append(facts | dict.fromkeys(MEASURES, np.nan) | own)
    return Evaluated(name, {"data_hash": data}, pd.DataFrame(rows))


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
    assert "no loss beyond 5 % is excluded for T1w gradient corr." in decision.outcome
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
    assert (decision.passed, decision.outcome) == (False, "not promoted: 5 subjects, 6 are needed to tell")


def test_balanced_accuracy_is_compared_site_by_site():
    rules = PromoteConfig(improve=("site_probe",), keep=())
    model = _evaluated(site_probe=0.0, gradient_correlation=0.98)
    decision = decide(model, _evaluated(site_probe=1.0), rules)
    assert decision.passed
    assert "site probe ↓: 0.000 against 1.000" in decision.lines[0]


def test_what_is_not_measured_is_said_and_decides_nothing():
    rules = PromoteConfig(improve=("truth_nrmse",), keep=("psnr",))
    decision = decide(_evaluated(truth_nrmse=0.1), _evaluated(truth_nrmse=0.4), rules)
    assert decision.passed
    assert "T1w PSNR dB: not measured image by image in both" in decision.lines


def test_other_images_cannot_be_compared():
    with pytest.raises(DataError, match="on different images"):
        decide(_evaluated(data="other", truth_nrmse=0.1), HOLDER, RULES)


@pytest.mark.parametrize("name", ["nonsense", "noise"])
def test_rules_name_measures_with_a_better_way(name):
    with pytest.raises(ConfigError, match=rf"promote.keep: {name}"):
        decide(HOLDER, HOLDER, PromoteConfig(keep=(name,)))
