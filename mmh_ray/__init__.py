"""mmh_ray: brain-MRI harmonization across sites, trained and run on Ray.

In a notebook: ``import mmh_ray as mmh``, then ``mmh.load().harmonize(image, sequence="T1w")``.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load``, imported when it is asked for: it brings torch, which takes seconds."""
    if name == "load":
        from mmh_ray.harmonization.one_scan import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
