"""`python -m mmh_ray.cli` is `mmh`."""

from mmh_ray.cli import run

if __name__ == "__main__":
    run()
