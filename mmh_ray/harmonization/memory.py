"""Limits the images that a run works on at a time to the memory that it may use (`harmonize.memory_gb`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmh_ray.bids.rows import ManifestRow, Status
from mmh_ray.bids.schema import mark_unusable
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.imaging.volume import BYTES_PER_VOXEL, voxels_by_header

GB = 10**9
RUN_BYTES = 1_500_000_000
"""Upper bound of the memory of a run on one machine without its workers: the driver and Ray's processes.

Measured: 1.1 GB. For the next two constants: .73 GB and .15 GB (proportional set sizes, 2 cores, mmh-base, 2026-11-29).
"""
WORKER_BYTES = 1_000_000_000
"""Upper bound of the memory of a worker that holds the model and no image."""
LEAST_IMAGE_BYTES = 200_000_000
"""Upper bound of the memory for the smallest image, with 6 mm voxels."""


class Workers(NamedTuple):
    """Number of workers on each machine, and of images that each works on at a time."""

    number: int
    images_each: int


def image_bytes(path: str) -> int:
    """Bytes needed to harmonize a scan, by its header; those of the smallest image if the file cannot be read."""
    return max(LEAST_IMAGE_BYTES, BYTES_PER_VOXEL * voxels_by_header(path))


def largest_image(images: Iterable[ManifestRow]) -> int:
    """Bytes needed for the largest usable image."""
    return max((image_bytes(image["uri"]) for image in images if image["status"] == Status.OK), default=0)


def check_memory_setting(memory_gb: float) -> None:
    """ConfigError if the memory is too small for one worker with the smallest image; 0 means no bound."""
    least = (RUN_BYTES + WORKER_BYTES + LEAST_IMAGE_BYTES) / GB
    if 0 < memory_gb < least:
        received = f"harmonize.memory_gb={memory_gb:g}"
        raise ConfigError(received, f"at least {least:g} GB, or 0 for no bound", "Give it more, or leave it out.")


def mark_too_large(images: Sequence[ManifestRow], memory_gb: float) -> None:
    """Mark, in place, every usable image that does not fit into the memory even alone; 0 means no bound."""
    if not memory_gb:
        return
    room = memory_gb * GB - RUN_BYTES - WORKER_BYTES
    for image in images:
        if image["status"] != Status.OK:
            continue
        need = image_bytes(image["uri"])
        if need > room:
            received = f"{image['uri']}: needs about {need / GB:.1f} GB"
            expected = f"at most {room / GB:.1f} GB, which harmonize.memory_gb={memory_gb:g} leaves for images"
            mark_unusable(image, DataError(received, expected, "Raise it, or crop or resample the scan."))


def check_scan_size(path: str, memory_gb: float) -> None:
    """DataError if a scan that is harmonized in this process does not fit into the memory; 0 means no bound."""
    need = WORKER_BYTES + image_bytes(path)
    if 0 < memory_gb * GB < need:
        received = f"{path}: needs about {need / GB:.1f} GB"
        expected = f"at most the {memory_gb:g} GB of harmonize.memory_gb"
        raise DataError(received, expected, "Raise it, or crop or resample the scan.")


def within(memory_gb: float, largest: int, requested: Workers) -> Workers:
    """Reduce the workers on a machine, then the images of each, to what fits into the memory; at least one each.

    Parameters
    ----------
    memory_gb:
        Gigabytes (10^9 bytes) of each machine.
    largest:
        Bytes needed for the largest image.
    """
    room = memory_gb * GB - RUN_BYTES
    workers_that_fit = int(room // (WORKER_BYTES + largest))
    workers = min(requested.number, max(1, workers_that_fit))
    room_for_images = room - workers * WORKER_BYTES
    images_that_fit = int(room_for_images // (workers * largest))
    images_each = min(requested.images_each, max(1, images_that_fit))
    return Workers(workers, images_each)
