"""How the driver hands out images to actors.

An actor gets several images at a time. After an actor has died, its images are tried one by one. Each image has a time
limit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from mmh_ray.bids.rows import Problem, Status, problem_of
from mmh_ray.config import Config
from mmh_ray.distributed import harmonize as driver
from mmh_ray.distributed.actor_pool import ActorPool
from mmh_ray.harmonization.job import Job, ModelIdentity
from mmh_ray.harmonization.outputs import ledger_row
from mmh_ray.harmonization.run import RunInputs
from mmh_ray.harmonization.target_domain import TargetDomain

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


UNIFIED = TargetDomain(None, "a" * 64)


def rows_of(monkeypatch: pytest.MonkeyPatch, config: Config, bundle: Path, folder: Path, *images: str) -> dict:
    """Ledger rows by image, from stand-in actors that wait until two images are being processed at once.

    Image `fatal` ends the actor's process, `greedy` raises Ray's out-of-memory error, and `endless` exceeds the time
    limit.
    """

    class Meeting:
        model_idle_s = 0.0

        def __init__(self, *_: Any) -> None: ...

        def harmonize(self, row: dict[str, Any]) -> list[dict[str, Any]]:
            Path(folder, row["image_id"]).touch()
            deadline = time.monotonic() + 60
            while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            if row["image_id"] == "fatal":
                os._exit(1)
            if row["image_id"] == "greedy":
                raise ray.exceptions.OutOfMemoryError("the node ran low on memory")
            if row["image_id"] == "endless":
                time.sleep(600)
            status = Status.DONE if len(list(folder.iterdir())) > 1 else Status.FAILED
            return [ledger_row(row, UNIFIED, status)]

    monkeypatch.setattr(driver, "HarmonizeWorker", Meeting)
    monkeypatch.setattr(driver, "MOST_IMAGES_PER_ACTOR", 2)
    job = Job(
        "bids", str(folder), str(bundle), replace(config, harmonize=replace(config.harmonize, slots=1, timeout_s=6.0))
    )
    rows = [{"image_id": name, "uri": name, "site": None, "sequence": "T1w"} for name in images]
    inputs = RunInputs(rows, bundle, ModelIdentity("models:/m/1", "b" * 64), [UNIFIED])
    return {row["image_id"]: row for found in driver.run_pool(rows, job, inputs) for row in found}


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


def test_an_image_that_takes_all_memory_and_one_that_never_ends_fail_alone(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Config, tiny_bundle: Path, tmp_path: Path
) -> None:
    rows = rows_of(monkeypatch, tiny_config, tiny_bundle, tmp_path, "greedy", "beside it", "endless", "last")
    assert {name: row["status"] for name, row in rows.items()} == {
        "greedy": "failed",
        "beside it": "done",
        "endless": "failed",
        "last": "done",
    }
    assert "the node ran low on memory" in rows["greedy"]["reason"]
    told = problem_of(rows["endless"])
    assert "not done after 6 s; expected an image done by then. Raise harmonize.timeout_s" in told.text


def test_where_no_worker_can_start_every_image_has_that_reason() -> None:
    class Unlucky:
        def __init__(self) -> None:
            raise RuntimeError("no model here")

    actor = ray.remote(num_cpus=0)(Unlucky)
    nowhere = ray.remote(num_cpus=0, resources={"of another world": 1})(Unlucky)

    def failed(row: dict[str, Any], problem: Problem) -> list[dict[str, Any]]:
        return [{**row, "reason": problem.reason}]

    for kind, wait_s, words in (
        (actor, 600, "no model here"),
        (nowhere, 2, "no worker could be started within 2 s: no place"),
    ):
        pool = ActorPool(kind.remote, 2, 1, 60, wait_s, lambda: "no place", failed)
        rows = [row for found in pool.run([{}, {}]) for row in found]
        assert len(rows) == 2
        assert all(words in row["reason"] for row in rows), rows


def test_without_a_gpu_for_them_the_images_say_what_an_actor_needs_and_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Config, tiny_bundle: Path, tmp_path: Path
) -> None:
    harmonize = replace(tiny_config.harmonize, gpus_per_actor=0.5, wait_s=2.0)
    config = replace(tiny_config, harmonize=harmonize)
    rows = rows_of(monkeypatch, config, tiny_bundle, tmp_path, "one", "other")
    assert [row["status"] for row in rows.values()] == ["failed"] * 2
    reason = rows["one"]["reason"]
    assert (
        "an actor needs 1 CPU and 0.5 GPU on one node, but no node has that (nodes: 1; the most is 4 CPU and 0 GPU)"
        in reason
    )
    assert "raise harmonize.wait_s" in rows["one"]["remedy"]


ON_A_GPU = """
import json
import os
import ray
from mmh_ray.config import HarmonizeConfig
from mmh_ray.distributed.actor_pool import ActorPool
from mmh_ray.distributed.cluster import describe_place
from mmh_ray.distributed.harmonize import pool_layout

ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)

class Actor:
    def gpus(self):
        return ray.get_gpu_ids()

    def visible(self):
        return os.environ.get("CUDA_VISIBLE_DEVICES")

whole = pool_layout(HarmonizeConfig(), [{}] * 10)
shared = pool_layout(HarmonizeConfig(gpus_per_actor=0.5, images_per_actor=3), [{}] * 10)
without = pool_layout(HarmonizeConfig(gpus_per_actor=0), [{}] * 10)
actors = [ray.remote(Actor).options(**shared.actor_options).remote() for _ in range(shared.actors)]
gpus = ray.get([actor.gpus.remote() for actor in actors])
visible = ray.get(ray.remote(Actor).options(**without.actor_options).remote().visible.remote())
one_more = lambda: ray.remote(Actor).options(**shared.actor_options).remote()
failed = lambda task, problem: [problem.reason]
pool = ActorPool(one_more, 1, 1, 60, 2, lambda: describe_place(shared.needs), failed)
reasons = next(pool.run([{}]))
print(json.dumps([whole[:2], shared[:2], without[:2], gpus, visible, reasons]))
"""


def test_actors_share_a_gpu_and_one_too_many_says_who_holds_it() -> None:
    """In a separate cluster, where Ray is told that there is a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_GPU], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    whole, shared, without, gpus, visible, reasons = json.loads(done.stdout.splitlines()[-1])
    assert whole == [1, 4]
    assert shared == [2, 3]
    assert without == [2, 2]
    assert gpus == [[0], [0]]
    assert visible == ""
    assert (
        "an actor needs 1 CPU and 0.5 GPU on one node, but other work or actors that are still starting use it"
        in reasons[0]
    )
    assert re.search(r"\(nodes: 1; free: \d+ CPU and 0 GPU\)", reasons[0])


def test_no_actor_outlives_a_run_that_stops(tmp_path: Path) -> None:
    class Writing:
        def harmonize(self, row: dict[str, Any]) -> list[dict[str, Any]]:
            (tmp_path / str(os.getpid())).touch()
            while row["image_id"] == "endless":
                time.sleep(0.01)
            return [row]

    start_actor = ray.remote(num_cpus=0, max_concurrency=2)(Writing).remote
    run = ActorPool(start_actor, 1, 2, 60, 600, str, lambda row, problem: []).run(
        [{"image_id": "endless"}, {"image_id": "first"}]
    )
    assert next(run) == [{"image_id": "first"}]
    run.close()
    (written,) = tmp_path.iterdir()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(written.name)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not psutil.pid_exists(int(written.name))


def test_an_actor_that_starts_still_when_all_is_done_is_let_to_end_by_itself(tmp_path: Path) -> None:
    """If it were killed while starting, the dashboard would show a FAILED task for a run that succeeded."""

    class Starting:
        def __init__(self, seconds: float) -> None:
            time.sleep(seconds)
            (tmp_path / str(os.getpid())).touch()

        def harmonize(self, row: dict[str, Any]) -> list[dict[str, Any]]:
            return [row]

    seconds = iter((0.0, 3.0))
    came_up: list[bool] = []
    waiting: list[int] = []
    start_actor = ray.remote(num_cpus=0)(Starting).remote
    run = ActorPool(lambda: start_actor(next(seconds)), 2, 1, 60, 600, str, lambda row, problem: [])
    rows = [{"image_id": "one"}, {"image_id": "other"}]
    assert list(run.run(rows, lambda: came_up.append(True), waiting.append)) == [[row] for row in rows]
    written = [int(path.name) for path in tmp_path.iterdir()]
    assert len(written) == 2
    assert came_up == [True]
    assert (waiting[0], waiting[-1]) == (2, 0)
    deadline = time.monotonic() + 60
    while any(map(psutil.pid_exists, written)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(psutil.pid_exists, written))
