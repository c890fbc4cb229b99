"""Harmonize a BIDS archive on a cluster: the same code as `mmh harmonize`.

    ray job submit --working-dir . -- python jobs/harmonize.py /data/bids /data/out --model models:/mmh-global@champion

Use absolute paths or URIs that every node can reach: a submitted job runs in a copy of the working folder.
"""

import sys

from mmh_ray.cli import run

if __name__ == "__main__":
    run(["harmonize", *sys.argv[1:]])
