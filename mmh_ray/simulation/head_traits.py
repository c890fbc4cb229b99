"""What is drawn of a simulated head before anything is simulated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadTraits:
    """What makes a :class:`~mmh_ray.simulation.people.Head`, besides its label map and the random shape of its ``seed``."""

    seed: int
    ventricles: float = 0.0
    """Enlargement of the ventricles, 0 none to 3 extreme hydrocephalus."""
    atrophy: float = 0.0
    """Share of the grey matter beside fluid that is lost, 0 to .6."""
    lesions: int = 0
    """White-matter lesions."""
    cavities: int = 0
    """Fluid-filled cysts or resection cavities."""
    tumours: int = 0
    """Masses with an enhancing rim, a core and oedema around them."""
    oddities: int = 0
    """Blobs of a mixture of tissues that no atlas knows: what a model must not explain away."""
    turn_degrees: float = 3.0
    """Standard deviation of the head's rotation about each axis; the default is that of a head upright on the working grid."""
    shift_mm: float = 0.0
    """Standard deviation of the head's place along each axis."""
