"""Runs all stages with every path in an object store, and with an outage of MLflow while a model trains.

    python -m benchmarks.outage [--away 180] [--steps 600]

Starts an S3 server (moto) and an MLflow server on this machine, uploads a small simulated archive, and runs
`mmh manifest`, `prepare`, `train-global`, `harmonize` and `evaluate` with `s3://` paths. After some training steps
MLflow's server is killed, and started again after `--away` seconds. Prints the seconds of each command, and how many
steps have a loss in MLflow in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import mlflow

from tests.mlflow_server import MlflowServer
from tests.ray_head import TINY

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "s3://archive"
SMALL = [
    *TINY,
    "phantom.subjects_per_site=4",
    "manifest.test_fraction=0.25",
    "train.checkpoint_every=50",
    f"train.storage={BUCKET}/runs",
    "train.run_name=outage",
]
KILLED_AFTER = "Training: "
"""Text of the training's progress lines."""


def main() -> None:
    """Run all stages, with an outage of MLflow in the middle, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--away", type=float, default=180, help="seconds that MLflow is away")
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, s3_server() as endpoint:
        folder = Path(scratch)
        server = MlflowServer(folder)
        os.environ |= {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_REGISTRY_URI": server.uri}
        server.start()
        try:
            settings = [*SMALL, f"train.steps={arguments.steps}"]
            command(["phantom", str(folder / "bids")], settings)
            upload(folder / "bids", endpoint)
            command(["manifest", f"{BUCKET}/bids", f"{BUCKET}/manifest.parquet"], settings)
            command(["prepare", f"{BUCKET}/manifest.parquet", f"{BUCKET}/prepared"], settings)
            train(settings, server, arguments.away)
            command(
                ["harmonize", f"{BUCKET}/bids", f"{BUCKET}/out", "--model", f"{BUCKET}/runs/outage/bundle"], settings
            )
            archives = ["--archive", f"raw={BUCKET}/bids", "--archive", f"ours={BUCKET}/out"]
            command(["evaluate", *archives, "--out", f"{BUCKET}/evaluation"], [*settings, "evaluate.cnn=none"])
            print(json.dumps(logged_steps(arguments.steps)))
        finally:
            server.kill()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server with an empty bucket; sets the environment variables of its clients."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    os.environ |= KEYS | {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET.removeprefix("s3://"))
    try:
        yield endpoint
    finally:
        server.stop()


def upload(folder: Path, endpoint: str) -> None:
    """Upload an archive to the bucket."""
    client = boto3.client("s3", endpoint_url=endpoint)
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET.removeprefix("s3://"), f"bids/{path.relative_to(folder)}")


def command(words: list[str], settings: list[str]) -> None:
    """Run a command, and print its exit code and seconds; a code other than 0 does not stop the benchmark."""
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "mmh_ray.cli", *words, *settings], check=False).returncode
    print(json.dumps({"command": words[0], "code": code, "seconds": round(time.perf_counter() - start)}), flush=True)


def train(settings: list[str], server: MlflowServer, away: float) -> None:
    """Train, and stop the server for a while after the first steps."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "mmh_ray.cli", "train-global", f"{BUCKET}/prepared", *settings]
    training = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    outage: threading.Thread | None = None
    assert training.stderr is not None
    for line in training.stderr:
        print(line, end="", file=sys.stderr)
        done = re.search(rf"{KILLED_AFTER}(\d+)/", line)
        if done and int(done[1]) > 0 and outage is None:
            outage = threading.Thread(target=restart_after, args=(server, away))
            outage.start()
    code = training.wait()
    if outage is not None:
        outage.join()
    seconds = round(time.perf_counter() - start)
    print(json.dumps({"command": "train-global", "code": code, "seconds": seconds}), flush=True)


def restart_after(server: MlflowServer, seconds: float) -> None:
    """Kill the server, and start it again after some seconds."""
    server.kill()
    time.sleep(seconds)
    server.start()
    print(json.dumps({"MLflow was away, seconds": seconds}), flush=True)


def logged_steps(steps: int) -> dict[str, object]:
    """How many steps of the training have a loss in MLflow."""
    client = mlflow.MlflowClient()
    (run,) = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
        if run.info.run_name == "outage"
    ]
    logged = {entry.step for entry in client.get_metric_history(run.info.run_id, "loss")}
    return {"status": run.info.status, "steps": steps, "steps with a loss in MLflow": len(logged)}


if __name__ == "__main__":
    main()
