"""Limits arithmetic to one thread, so that results do not depend on the number of cores or on other work.

ITK and torch split a sum among as many threads as there are cores. The parts are rounded separately and added in the
order in which they finish. So a voxel, or the result of a registration, would vary between machines and between runs.
Work is spread over images instead.
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
"""Restores the libraries' numbers of threads from before the first block."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Make SimpleITK and torch compute in one thread inside the block.

    Can be nested, used by several threads at a time, and used as a decorator. The last exit restores the numbers of
    threads; a Python thread that exits earlier keeps one thread for torch. BLAS needs no limit: it gave identical
    results with 1 to 16 threads.
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
    """Limit the libraries that are loaded; nothing heavy is imported for this."""
    itk: Any = sys.modules.get("SimpleITK")
    if itk is not None:
        # A filter's SetNumberOfThreads does not apply to its internal filters; only the global default does.
        threads = itk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        before.callback(itk.ProcessObject.SetGlobalDefaultNumberOfThreads, threads)
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        before.callback(torch.set_num_threads, torch.get_num_threads())


def _limit_torch_here() -> None:
    """Limit torch in the current Python thread; it has a separate setting for each."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
