r"""Train and register adapters of target sites on a cluster: the same code as `mmh train-target`.

    ray job submit --working-dir . -- \
      python jobs/train_target.py /data/prepared --config configs/target.yaml model=models:/mmh-global@champion \
      'target.site=[north, south]'

Use absolute paths or URIs that every node can reach: a submitted job runs in a copy of the working folder.
"""

import sys

from mmh_ray.cli import run

if __name__ == "__main__":
    run(["train-target", *sys.argv[1:]])
