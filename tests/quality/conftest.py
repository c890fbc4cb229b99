"""Cohorts for the report's tests: records and pictures as a run leaves them, computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmh_ray.bids.rows import Problem
from mmh_ray.bids.status import RunRecord
from mmh_ray.quality.cohort import ImageRecord, Measure

BINS = 50


@pytest.fixture
def record() -> RunRecord:
    """A run that finished."""
    return RunRecord(
        source="/data/archive",
        model="models:/mmh-global@champion",
        model_hash="abc123",
        version="0.1.0",
        images=9,
        started="2026-03-01T09:00:00+00:00",
        finished="2026-03-01T10:30:05+00:00",
        failure=None,
        settings={"harmonize": {"steps": 20, "detail": "project"}, "seed": 0},
        versions={"numpy": "2.1"},
    )


@pytest.fixture
def measures() -> list[Measure]:
    """Two measures, bounded from below and from above."""
    kept = Measure("preservation", "anatomy kept", "Gradient correlation; higher is better.", 0.85, None)
    return [kept, Measure("noise", "noise", "Noise level, unit intensity; lower is better.", None, 0.05)]


@pytest.fixture
def image() -> Callable[..., ImageRecord]:
    """Makes a harmonized image with some fields changed."""
    curve = np.histogram(np.random.default_rng(0).normal(0.7, 0.1, 500), BINS, (0, 1.25), density=True)[0]
    usual = ImageRecord(
        image_id="sub-01_T1w",
        subject="01",
        session=None,
        site="alpha",
        sequence="T1w",
        status="done",
        problem=None,
        seconds=12.5,
        flags=(),
        qc={"preservation": 0.95, "noise": 0.01},
        before=None,
        after=None,
        histogram_before=curve,
        histogram_after=curve,
    )

    def made(**changes: Any) -> ImageRecord:
        return replace(usual, **changes)

    return made


@pytest.fixture
def many(image: Callable[..., ImageRecord]) -> Callable[[int], list[ImageRecord]]:
    """Makes a cohort of that many images: four sites, two sequences, one of 20 failed, one of 10 noisy."""

    def made(count: int) -> list[ImageRecord]:
        return [_numbered(image, i) for i in range(count)]

    return made


def _numbered(image: Callable[..., ImageRecord], i: int) -> ImageRecord:
    sequence = ("T1w", "T2w")[i % 2]
    facts = {
        "image_id": f"sub-{i:05d}_{sequence}",
        "subject": f"{i:05d}",
        "site": ("alpha", "beta", "gamma", "delta")[i % 4],
        "sequence": sequence,
    }
    if i % 20 == 3:
        lost = {"qc": {}, "histogram_before": None, "histogram_after": None, "seconds": None}
        return image(
            **facts, **lost, status="failed", problem=Problem(f"/data/sub-{i:05d}_{sequence}.nii.gz: unreadable")
        )
    noisy = i % 10 == 4
    flags = ("The result is noisier than the bound.",) if noisy else ()
    qc = {"preservation": 0.9 + (i * 7919 % 1000) / 10_000, "noise": 0.06 if noisy else 0.01}
    return image(**facts, flags=flags, qc=qc)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[str, int], str]:
    """Writes a grey JPEG below the report's folder and gives its relative path."""

    def made(name: str, grey: int) -> str:
        path = tmp_path / "qc" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 160), grey, np.uint8)).save(path, format="JPEG")
        return f"qc/{name}"

    return made
