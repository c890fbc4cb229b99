"""Unusual scans, as they occur in archives, through the actor of the batch job.

They have fill values, cut heads, masks that do not fit, or contrast agent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.bids.derivatives import read_sidecar
from mmh_ray.config import Config
from mmh_ray.harmonization.job import ModelIdentity
from mmh_ray.harmonization.target_domain import TargetDomain
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.imaging.volume import Volume, read_volume, write_volume
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render

pytestmark = pytest.mark.slow

SPACING = 4.0


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return simulate_anatomy(Person(1, scalp=True), SPACING)


@pytest.fixture(scope="module")
def head(anatomy: Anatomy) -> Volume:
    """A T1w head with its scalp, 0 to 1,000, and dark air."""
    data = render(anatomy, SITES[0], "T1w", np.random.default_rng(1), SPACING)
    data = 1000 * data / data.max()
    return Volume(np.where(data < 60, 0, data).astype(np.float32), anatomy.affine)


class Run:
    """Harmonizes one scan, perhaps with a mask, in a separate folder."""

    def __init__(self, bundle_files: dict[str, bytes], config: Config, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.mask = folder / "sub-01_desc-brain_mask.nii.gz"
        self._worker = HarmonizeWorker(
            bundle_files, config, str(self.out), ModelIdentity("models:/m/1", "a" * 64), [TargetDomain(None, "b" * 64)]
        )

    def __call__(self, scan: Volume, mask: np.ndarray | None = None, name: str = "sub-01_T1w") -> dict[str, Any]:
        path = self.folder / f"{name}.nii.gz"
        write_volume(scan, path)
        if mask is not None:
            write_volume(Volume(mask.astype(np.uint8), scan.affine), self.mask, np.uint8)
        row = {"image_id": name, "uri": str(path), "site": "north", "sequence": "T1w", "earlier": {}}
        row |= {"status": "ok", "reason": None, "mask_uri": None if mask is None else str(self.mask)}
        (found,) = self._worker.harmonize(row)
        return found

    def image(self, found: dict[str, Any]) -> np.ndarray:
        """The harmonized image."""
        return read_volume(self.out / found["output"]).data


@pytest.fixture
def run(tiny_bundle_files: dict[str, bytes], tiny_config: Config, tmp_path: Path) -> Run:
    return Run(tiny_bundle_files, tiny_config, tmp_path)


def test_contrast_agent_is_flagged(run: Run, head: Volume) -> None:
    found = run(head, name="sub-01_ce-gadolinium_T1w")
    assert found["status"] == "done", found["reason"]
    assert found["flags"][0].startswith("contrast agent (gadolinium): ")
    assert read_sidecar(run.out / found["output"])["Flags"] == found["flags"]


def test_fill_values_change_no_intensity_and_come_out_as_air(run: Run, head: Volume, anatomy: Anatomy) -> None:
    images, lows = [], []
    turned_brain = ndimage.rotate(anatomy.brain.astype(np.float32), 12, (1, 2), reshape=False, order=1) > 0.5
    for fill in (0.0, -1000.0):
        data = ndimage.rotate(head.data, 12, (1, 2), reshape=False, order=1, cval=fill).astype(np.float32)
        found = run(head.like(data), turned_brain)
        assert found["status"] == "done", found["reason"]
        images.append(run.image(found))
        lows.append(read_sidecar(run.out / found["output"])["IntensityMapping"]["Low"])
    assert lows[1] == pytest.approx(lows[0], abs=20)
    assert np.abs(images[1] - images[0])[turned_brain].mean() < 0.02
    nowhere = ndimage.rotate(np.ones_like(head.data), 12, (1, 2), reshape=False, order=0, cval=0) == 0
    assert images[1][nowhere].mean() < 0.05


@pytest.mark.parametrize("height_mm", [70, 90])
def test_the_upper_part_of_a_head_is_harmonized_with_its_mask_and_flagged(
    run: Run, head: Volume, anatomy: Anatomy, height_mm: int
) -> None:
    top = int(np.flatnonzero(anatomy.brain.any(axis=(0, 1)))[-1])
    start = top - round(height_mm / SPACING)
    affine = head.affine.copy()
    affine[2, 3] += SPACING * start
    found = run(Volume(head.data[:, :, start:], affine), anatomy.brain[:, :, start:])
    assert found["status"] == "done", found["reason"]
    assert any(flag.startswith("brain in view") for flag in found["flags"]), found["flags"]


def test_a_mask_beside_the_brain_is_flagged_or_named(run: Run, head: Volume, anatomy: Anatomy) -> None:
    right = run(head, anatomy.brain)
    assert right["status"] == "done", right["reason"]
    assert not any("mask" in flag for flag in right["flags"]), right["flags"]
    moved = run(head, np.roll(anatomy.brain, 3, axis=0))
    told = " ".join([moved["reason"] or "", *(moved["flags"] or [])])
    assert "mask" in told, moved


def test_a_mask_of_elsewhere_is_named_and_none_is_asked_for(run: Run, head: Volume, anatomy: Anatomy) -> None:
    corner = np.zeros_like(anatomy.brain)
    corner[:6, :6, :6] = True
    found = run(head, corner)
    assert found["status"] in ("failed", "refused")
    assert str(run.mask) in found["reason"]
    assert "give a brain mask" not in found["reason"]
