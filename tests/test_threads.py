"""One thread for arithmetic inside the block, also if nested or in parallel; afterwards everything is as before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import SimpleITK as sitk
import torch

from mmh_ray.threads import one_thread

pytestmark = pytest.mark.fast

MANY = 3


def threads() -> dict[str, int]:
    """Number of threads that each library would use now in this thread."""
    return {"itk": sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), "torch": torch.get_num_threads()}


ONE = {"itk": 1, "torch": 1}
AS_BEFORE = {"itk": MANY, "torch": MANY}


@pytest.fixture(autouse=True)
def _many_threads() -> Iterator[None]:
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), torch.get_num_threads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(MANY)
    torch.set_num_threads(MANY)
    yield
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before[0])
    torch.set_num_threads(before[1])


def test_one_thread_inside_and_as_before_after_it() -> None:
    with one_thread():
        assert threads() == ONE
        with one_thread():
            assert threads() == ONE
        assert threads() == ONE
    assert threads() == AS_BEFORE


def test_an_exception_restores_the_threads() -> None:
    @one_thread()
    def fails() -> None:
        assert threads() == ONE
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert threads() == AS_BEFORE


def test_parallel_threads_have_one_each_until_the_last_exits() -> None:
    together = threading.Barrier(4)

    @one_thread()
    def look(number: int) -> dict[str, int]:
        together.wait(timeout=10)
        if number % 2:
            threading.Event().wait(0.05)  # the others have left by then
        return threads()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(look, range(4))) == [ONE] * 4
    assert threads() == AS_BEFORE
