"""The same input gives the same bytes: the number of threads and other work in the process change no voxel."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmh_ray.config import GridConfig, PrepareConfig
from mmh_ray.imaging.intensity import correct_bias
from mmh_ray.imaging.preprocess import prepare_volume
from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render

COARSE = GridConfig(6.0, (32, 40, 32))


@pytest.fixture(params=[1, 2, 8], ids=lambda count: f"{count} threads")
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(request.param)
    yield
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@pytest.fixture(scope="module")
def head() -> Volume:
    """A head that is turned, so that it has to be registered."""
    anatomy = simulate_anatomy(Person(4, scalp=True), 3.0)
    scan = render(anatomy, SITES[0], "T1w", np.random.default_rng(0), 3.0)
    turn = Rotation.from_euler("xyz", [12, 5, 3], degrees=True).as_matrix()
    centre = (np.array(scan.shape) - 1) / 2
    turned = ndimage.affine_transform(scan, turn, offset=centre - turn @ centre, order=1)
    return Volume(turned.astype(np.float32), anatomy.affine)


@pytest.fixture(scope="module")
def found() -> dict[str, set[bytes]]:
    """All results so far, by step."""
    return {"bias field": set(), "prepared": set()}


@pytest.mark.fast
@pytest.mark.usefixtures("_threads")
def test_a_bias_field_is_the_same_for_any_number_of_threads(head: Volume, found: dict[str, set[bytes]]) -> None:
    data = head.data[::2, ::2, ::2]
    corrected = correct_bias(data, data > 0.2, (6.0, 6.0, 6.0), (5, 5))
    found["bias field"].add(corrected.tobytes())
    assert len(found["bias field"]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_threads")
def test_a_registered_scan_is_the_same_again_and_beside_others(head: Volume, found: dict[str, set[bytes]]) -> None:
    def prepared(_: int) -> bytes:
        done = prepare_volume(head, None, COARSE, PrepareConfig())
        assert done.registration is not None
        assert done.registration.method == "affine"
        return done.registration.matrix.tobytes() + done.image.tobytes() + done.brain.tobytes()

    with ThreadPoolExecutor(3) as pool:
        found["prepared"].update(pool.map(prepared, range(3)))
    found["prepared"].add(prepared(0))
    assert len(found["prepared"]) == 1
