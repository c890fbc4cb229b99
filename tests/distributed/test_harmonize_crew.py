"""How the driver hands out images: several to an actor at a time, and after a death one by one."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.config import Config
from mmh_ray.distributed import harmonize as driver
from mmh_ray.distributed.job import Job
from mmh_ray.distributed.worker import Look, ledger_row

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


LOOK = Look(None, "a" * 64)


def rows_of(monkeypatch: pytest.MonkeyPatch, config: Config, bundle: Path, folder: Path, *images: str) -> dict:
    """Rows by image, from actors that do nothing but meet: `fatal` ends its process, the others wait for a second image beside them."""

    class Meeting:
        def __init__(self, *_: Any) -> None: ...

        def harmonize(self, row: dict[str, Any]) -> list[dict[str, Any]]:
            Path(folder, row["image_id"]).touch()
            deadline = time.monotonic() + 60
            while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            if row["image_id"] == "fatal":
                os._exit(1)
            status = "done" if len(list(folder.iterdir())) > 1 else "failed"
            return [ledger_row(row, LOOK, status, None)]

    monkeypatch.setattr(driver, "HarmonizeWorker", Meeting)
    monkeypatch.setattr(driver, "MOST_ABREAST", 2)
    job = Job("bids", str(folder), str(bundle), replace(config, harmonize=replace(config.harmonize, slots=1)))
    rows = [{"image_id": name, "uri": name, "site": None, "sequence": "T1w"} for name in images]
    return {row["image_id"]: row for found in driver._run(rows, job, bundle, {}, [LOOK]) for row in found}


def test_an_actor_has_two_images_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Config, tiny_bundle: Path, tmp_path: Path
) -> None:
    rows = rows_of(monkeypatch, tiny_config, tiny_bundle, tmp_path, "one", "other")
    assert [row["status"] for row in rows.values()] == ["done"] * 2


def test_an_image_that_kills_its_actor_fails_alone(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Config, tiny_bundle: Path, tmp_path: Path
) -> None:
    rows = rows_of(monkeypatch, tiny_config, tiny_bundle, tmp_path, "fatal", "beside it", "after them", "last")
    assert {name: row["status"] for name, row in rows.items()} == {
        "fatal": "failed",
        "beside it": "done",
        "after them": "done",
        "last": "done",
    }
    assert "the worker died 2 times on this image" in rows["fatal"]["reason"]
