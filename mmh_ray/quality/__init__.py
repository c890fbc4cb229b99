"""What became of every image: checks of a scan and of its harmonization, pictures, and the report of a run."""
