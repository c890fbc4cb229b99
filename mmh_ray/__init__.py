"""mmh_ray: brain-MRI harmonization across sites, trained and run on Ray."""

__version__ = "0.1.0"
