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
except metadata.PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import ``load`` and ``compare`` on first use: they need torch and matplotlib, which take seconds to import."""
    if name == "load":
        from mmh_ray.harmonization.one_scan import load

        return load
    if name == "compare":
        from mmh_ray.quality.comparison import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
