"""mmh_ray: brain-MRI harmonization across sites, trained and run on Ray.

In a notebook::

    import mmh_ray as mmh

    after = mmh.load().harmonize(before, sequence="T1w")
    mmh.compare(before, after)
"""

from importlib import metadata
from typing import Any

try:
    __version__ = metadata.version("mmh-ray")
except metadata.PackageNotFoundError:  # a checkout that was never installed, on the path of a process
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """``load`` and ``compare``, imported when they are asked for: they bring torch and matplotlib, which take
    seconds."""
    if name == "load":
        from mmh_ray.harmonization.one_scan import load

        return load
    if name == "compare":
        from mmh_ray.quality.comparison import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
