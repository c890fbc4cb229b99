"""Maps images from the unified domain to the style of one site: adapter, fine-tuner, bundle."""
