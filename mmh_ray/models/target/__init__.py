"""From the unified domain to one site's look: adapter, fine-tuner, bundle."""
