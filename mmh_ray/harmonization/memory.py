"""How many images a run may have in hand within the memory that it was given (`harmonize.memory_gb`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmh_ray.bids.rows import ManifestRow, Status
from mmh_ray.bids.schema import mark_unusable
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.imaging.volume import BYTES_PER_VOXEL, voxels_by_header

GB = 10**9
RUN_BYTES = 1_500_000_000
"""Generous bound on what a run takes on a machine besides its workers: the driver and Ray's processes.

1.1 GB were seen, and below .73 GB and .15 GB (proportional set sizes, on 2 cores, with mmh-base, 2026-11-29)."""
WORKER_BYTES = 1_000_000_000
"""The same for a worker that holds the model and no image."""
LEAST_IMAGE_BYTES = 200_000_000
"""The same for the smallest image, one of 6 mm voxels."""


class Workers(NamedTuple):
    """Workers on each machine, and the images that each has in hand at a time."""

    number: int
    images_each: int


def image_bytes(path: str) -> int:
    """Bytes that harmonizing a scan takes, by its header; of a file that cannot be read those of the smallest."""
    return max(LEAST_IMAGE_BYTES, BYTES_PER_VOXEL * voxels_by_header(path))


def largest_image(images: Iterable[ManifestRow]) -> int:
    """Bytes of the usable image that takes most."""
    return max((image_bytes(image["uri"]) for image in images if image["status"] == Status.OK), default=0)


def check_memory_setting(memory_gb: float) -> None:
    """ConfigError if not even the smallest image fits beside one worker; 0 sets no bound."""
    least = (RUN_BYTES + WORKER_BYTES + LEAST_IMAGE_BYTES) / GB
    if 0 < memory_gb < least:
        received = f"harmonize.memory_gb={memory_gb:g}"
        raise ConfigError(received, f"at least {least:g} GB, or 0 for no bound", "Give it more, or leave it out.")


def mark_too_large(images: Sequence[ManifestRow], memory_gb: float) -> None:
    """Mark, in place, every usable image that does not fit into the memory although it is the only one; 0 sets no bound."""
    if not memory_gb:
        return
    room = memory_gb * GB - RUN_BYTES - WORKER_BYTES
    for image in images:
        if image["status"] != Status.OK:
            continue
        need = image_bytes(image["uri"])
        if need > room:
            received = f"{image['uri']}: about {need / GB:.1f} GB to work on"
            expected = f"at most {room / GB:.1f} GB, which harmonize.memory_gb={memory_gb:g} leaves for images"
            mark_unusable(image, DataError(received, expected, "Raise it, or crop or resample the scan."))


def check_scan(path: str, memory_gb: float) -> None:
    """DataError if one scan, harmonized in this process, does not fit into the memory; 0 sets no bound."""
    need = WORKER_BYTES + image_bytes(path)
    if 0 < memory_gb * GB < need:
        received = f"{path}: about {need / GB:.1f} GB to work on"
        expected = f"at most the {memory_gb:g} GB of harmonize.memory_gb"
        raise DataError(received, expected, "Raise it, or crop or resample the scan.")


def within(memory_gb: float, largest: int, wanted: Workers) -> Workers:
    """As many of the wanted workers on a machine, and then of the images of each, as the memory holds; at least one of one.

    Parameters
    ----------
    memory_gb:
        Gigabytes (10^9 bytes) of each machine.
    largest:
        Bytes of the image that takes most.
    """
    room = memory_gb * GB - RUN_BYTES
    workers_that_fit = int(room // (WORKER_BYTES + largest))
    workers = min(wanted.number, max(1, workers_that_fit))
    room_for_images = room - workers * WORKER_BYTES
    images_that_fit = int(room_for_images // (workers * largest))
    images_each = min(wanted.images_each, max(1, images_that_fit))
    return Workers(workers, images_each)
