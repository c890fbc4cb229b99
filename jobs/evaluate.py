r"""Compare raw, baselines and harmonized images on a cluster: the same code as `mmh evaluate`.

    ray job submit --working-dir . -- \
      python jobs/evaluate.py --archive raw=/data/bids --archive ours=/data/out --out /data/scores

Use absolute paths or URIs that every node can reach: a submitted job runs in a copy of the working folder.
"""

import sys

from mmh_ray.cli import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
