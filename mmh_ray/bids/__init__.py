"""BIDS in and out: entities, the manifest, derivatives. No torch, no Ray."""
