r"""Bring every image of a manifest to the working grid on a cluster: the same code as `mmh prepare`.

    ray job submit --working-dir . -- \
      python jobs/prepare.py /data/manifest.parquet /data/prepared --config configs/global.yaml

Use absolute paths or URIs that every node can reach: a submitted job runs in a copy of the working folder.
"""

import sys

from mmh_ray.cli import run

if __name__ == "__main__":
    run(["prepare", *sys.argv[1:]])
