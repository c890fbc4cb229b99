"""Imports diffusers without the packages that only its pipelines need: that takes a third of its import time away."""

from __future__ import annotations

import sys
import threading
from typing import Any

_NOT_NEEDED = ("accelerate", "peft", "transformers")
"""Optional packages that diffusers imports wherever they are installed."""
_lock = threading.Lock()


def import_diffusers() -> Any:
    """Return the package, with ``UNet2DModel`` and ``DDIMScheduler`` loaded.

    The optional packages are hidden during the import, and can be imported afterwards. In this process diffusers then
    regards them as not installed, which matters to its pipelines, quantizers and LoRA loaders alone. Packages that were
    imported before are not hidden.
    """
    with _lock:
        hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
        for name in hidden:
            sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say that a package cannot be imported
        try:
            import diffusers

            _ = diffusers.UNet2DModel, diffusers.DDIMScheduler  # diffusers imports a class when it is first used
        finally:
            for name in hidden:
                del sys.modules[name]
    return diffusers
