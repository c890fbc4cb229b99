"""How a scan looks, as a vector: backbones, tri-planar attention, training."""
