"""The ledger of a folder in an object store: a real S3 server (moto) on the loopback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.ledger import current_rows, read_ledger
from mmh_ray.bids.output_folder import LEDGER_PARTS, output_folder
from mmh_ray.errors import DataError
from tests.s3_files import BUCKET, content, keys

pytestmark = pytest.mark.slow

OUT = "s3://bucket/out"
KILLED = """
import os, signal, sys
from mmh_ray.bids.output_folder import output_folder
with output_folder(sys.argv[1]) as output, output.journal() as journal:
    for number in range(int(sys.argv[2])):
        journal.append({"image_id": f"image-{number:03d}", "status": "done", "seconds": float(number)})
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""Records images, and is killed."""


def killed(images: int) -> None:
    """A run that is killed after it recorded this number of images."""
    done = subprocess.run([sys.executable, "-c", KILLED, OUT, str(images)], check=False)
    assert done.returncode == -signal.SIGKILL


def seen() -> dict[str, str]:
    """Status of each image as read by another process."""
    with output_folder(OUT) as output:
        return {row["image_id"]: row["status"] for row in current_rows(output.folder)}


def test_every_recorded_row_outlives_the_driver(s3: Any, tmp_path: Path) -> None:
    killed(230)
    assert len(keys(s3, f"out/{LEDGER_PARTS}")) == 3
    assert seen() == {f"image-{number:03d}": "done" for number in range(230)}
    with output_folder(OUT) as output, output.journal() as journal:
        assert len(journal.rows()) == 230
        journal.append({"image_id": "image-007", "status": "failed"})  # newer than what was left
        assert seen()["image-007"] == "failed"
    assert keys(s3, "out") == {"ledger.parquet"}
    path = tmp_path / "ledger.parquet"
    path.write_bytes(content(s3, "out/ledger.parquet"))
    assert len(read_ledger(path)) == 230
    assert seen()["image-007"] == "failed"


def test_rows_of_a_second_killed_run_are_newer_than_those_of_the_first(s3: Any) -> None:
    killed(2)
    with output_folder(OUT) as output:
        journal = output.journal()
        journal.append({"image_id": "image-001", "status": "refused"})
        assert seen() == {"image-000": "done", "image-001": "refused"}
        journal.close()
        journal.close()  # closing twice does nothing
    assert seen() == {"image-000": "done", "image-001": "refused"}


def test_damaged_parts_cost_only_themselves(s3: Any) -> None:
    killed(2)
    for name, body in (("000000000009.jsonl", b"{\n"), ("odd.jsonl", b"\xff"), ("../../escaped", b"{}")):
        s3.put_object(Bucket=BUCKET, Key=f"out/{LEDGER_PARTS}/{name}", Body=body)
    assert len(seen()) == 2
    with output_folder(OUT) as output, output.journal() as journal:
        journal.append({"image_id": "image-002", "status": "done"})
    assert sorted(seen()) == ["image-000", "image-001", "image-002"]


def test_an_unreadable_ledger_is_refused_and_the_lock_is_released(s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="out/ledger.parquet", Body=b"no table")
    for _ in range(2):  # the second is not told that another run is writing
        with (
            pytest.raises(DataError, match=r"^s3://bucket/out/ledger.parquet: .*expected a readable ledger"),
            output_folder(OUT) as output,
        ):
            output.journal()
