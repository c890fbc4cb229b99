"""List every image of a BIDS archive on a cluster: the same code as `mmh manifest`.

    ray job submit --working-dir . -- python jobs/build_manifest.py /data/bids /data/manifest.parquet

Use absolute paths or URIs that every node can reach: a submitted job runs in a copy of the working folder.
"""

import sys

from mmh_ray.cli import run

if __name__ == "__main__":
    run(["manifest", *sys.argv[1:]])
