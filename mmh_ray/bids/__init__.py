"""Reads and writes BIDS data: entities, the manifest, derivatives. No torch, no Ray."""
