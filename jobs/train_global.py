r"""Train and register the global harmonizer on a cluster: the same code as `mmh train-global`.

    ray job submit --working-dir . -- \
      python jobs/train_global.py /data/prepared --config configs/global.yaml train.workers=8

Use absolute paths or URIs that every node can reach: a submitted job runs in a copy of the working folder.
"""

import sys

from mmh_ray.cli import run

if __name__ == "__main__":
    run(["train-global", *sys.argv[1:]])
