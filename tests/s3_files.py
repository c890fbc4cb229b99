"""Folders in the bucket of the tests' S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BUCKET = "bucket"
SECRET = "s3cr3t"


def environment(endpoint: str) -> dict[str, str]:
    """Variables that give the address and credentials of a server."""
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
    }


def upload(s3: Any, folder: Path, prefix: str) -> None:
    """Put every file of a folder below a prefix."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            s3.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


def keys(s3: Any, prefix: str) -> set[str]:
    """Keys of files below a prefix, relative to it; what marks an empty folder is left out."""
    folder = f"{prefix}/" if prefix else ""
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=folder).get("Contents", [])
    return {entry["Key"].removeprefix(folder) for entry in found if not entry["Key"].endswith("/")}


def content(s3: Any, key: str) -> bytes:
    """Bytes of an object."""
    return s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def download(s3: Any, prefix: str, folder: Path) -> Path:
    """Copy everything below a prefix to a folder."""
    for key in keys(s3, prefix):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(s3, f"{prefix}/{key}" if prefix else key))
    return folder
