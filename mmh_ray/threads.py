"""One thread for arithmetic: the same bytes in give the same bytes out, for any number of cores and of work beside it.

ITK and torch share a sum out among as many threads as they find cores. The parts are rounded separately and added as
they come, so that a voxel, or where a registration ends, depends on the machine and on the moment. Work is spread over
images instead.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_LOCK = threading.Lock()
_inside = 0
_before = contextlib.ExitStack()
"""Gives the libraries the threads back that they had before the first block was entered."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let SimpleITK and torch compute in one thread inside the block.

    Can be nested, used by several threads at a time and as a decorator. The last to leave gives the libraries their
    threads back; a thread that leaves earlier keeps one thread for torch. (BLAS needs no limit: with 1 to 16 threads it
    gave the same bits.)
    """
    global _inside
    with _LOCK:
        if _inside == 0:
            _limit_the_process(_before)
        _inside += 1
    _limit_torch_here()
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                _before.close()


def _limit_the_process(before: contextlib.ExitStack) -> None:
    """Only libraries that are loaded: nothing heavy is imported for it."""
    itk: Any = sys.modules.get("SimpleITK")
    if itk is not None:
        # A filter's own SetNumberOfThreads does not reach the filters that it is made of: only the default does.
        threads = itk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        before.callback(itk.ProcessObject.SetGlobalDefaultNumberOfThreads, threads)
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        before.callback(torch.set_num_threads, torch.get_num_threads())


def _limit_torch_here() -> None:
    """Torch counts the threads of every Python thread separately."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
