"""The schedule of learning rates has its known values."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mmh_ray.training import learning_rate_share

pytestmark = pytest.mark.fast


def test_schedule_has_its_known_values() -> None:
    shares = [learning_rate_share(step, steps=1000, warmup_steps=10) for step in range(1000)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == pytest.approx(1, rel=1e-3)  # the peak; the cosine has hardly begun
    assert shares[500] == pytest.approx(0.01 + 0.99 / 2)
    assert shares[999] == pytest.approx(0.01, rel=1e-3)
    assert all(before > after for before, after in pairwise(shares[9:]))


def test_schedule_stays_at_its_end_and_needs_no_warm_up() -> None:
    assert learning_rate_share(5000, steps=1000, warmup_steps=10) == pytest.approx(0.01)
    assert learning_rate_share(0, steps=1000, warmup_steps=0) == pytest.approx(1)
