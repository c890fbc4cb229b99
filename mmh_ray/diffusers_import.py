"""Imports of diffusers only what our networks need, which saves time and memory: see benchmarks/one-volume.md."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

_NOT_NEEDED = ("accelerate", "peft", "transformers", "torch._dynamo")
"""Packages that diffusers imports if it can: for pipelines, quantizers and LoRA, and for ``torch.compile``."""
_WHOLE_FAMILIES = ("diffusers.models.unets", "diffusers.models.transformers")
"""Packages whose ``__init__`` imports all networks of a kind, of which we use one."""
_lock = threading.Lock()


@functools.cache
def import_diffusers() -> Any:
    """Return a namespace with ``UNet2DModel`` and ``DDIMScheduler``.

    The packages that are left out can be imported afterwards, but not by another thread during the second that the
    first call takes. In this process diffusers then regards its optional packages as not installed. What was imported
    before is left as it is. A version of diffusers with other modules is imported as a whole.
    """
    with _lock:
        try:
            with _hidden(_NOT_NEEDED), _without_init(_WHOLE_FAMILIES):
                unet = importlib.import_module("diffusers.models.unets.unet_2d")
                ddim = importlib.import_module("diffusers.schedulers.scheduling_ddim")
        except (ImportError, RuntimeError):  # diffusers raises the second where a module that it delays fails
            return importlib.import_module("diffusers")
    return SimpleNamespace(UNet2DModel=unet.UNet2DModel, DDIMScheduler=ddim.DDIMScheduler)


@contextlib.contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make the import of these packages fail, unless they were imported before."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say that a package cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _without_init(names: tuple[str, ...]) -> Iterator[None]:
    """Let modules of these packages be imported without the packages' own ``__init__``, unless it has already run."""
    bare = [name for name in names if name not in sys.modules]
    try:
        for name in bare:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(name)
            sys.modules[name] = importlib.util.module_from_spec(spec)
        yield
    finally:
        for name in bare:
            sys.modules.pop(name, None)
