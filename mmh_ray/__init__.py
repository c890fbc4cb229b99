"""mmh_ray: brain-MRI harmonization across sites, trained and run on Ray.

In a notebook::

    import mmh_ray as mmh

    after = mmh.load().harmonize(before, sequence="T1w")
    mmh.compare(before, after)
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load`` and ``compare``, imported when they are asked for: they bring torch and matplotlib, which take seconds."""
    if name == "load":
        from mmh_ray.harmonization.one_scan import load

        return load
    if name == "compare":
        from mmh_ray.quality.comparison import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
