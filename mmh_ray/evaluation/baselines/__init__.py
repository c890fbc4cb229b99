"""The simple methods that ours is compared with."""
