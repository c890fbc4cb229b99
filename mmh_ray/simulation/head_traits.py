"""The properties of a simulated head that are drawn before it is simulated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadTraits:
    """The properties of a :class:`~mmh_ray.simulation.people.Head`; the ``seed`` determines its random shape."""

    seed: int
    ventricles: float = 0.0
    """Enlargement of the ventricles: 0 is none, 3 is extreme hydrocephalus."""
    atrophy: float = 0.0
    """Share of the grey matter next to fluid that is lost, 0 to .6."""
    lesions: int = 0
    """White-matter lesions."""
    cavities: int = 0
    """Fluid-filled cysts or resection cavities."""
    tumours: int = 0
    """Masses with an enhancing rim, a core and oedema around them."""
    oddities: int = 0
    """Blobs with a mixture of tissues unlike any atlas: a model must not remove them."""
    turn_degrees: float = 3.0
    """Standard deviation of the head's rotation about each axis; the default is for a head upright on the grid."""
    shift_mm: float = 0.0
    """Standard deviation of the head's position along each axis."""
