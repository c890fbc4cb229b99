"""`python -m mmh_ray.cli` is `mmh`."""

import sys

from mmh_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
