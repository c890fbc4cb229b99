"""The only place that knows Ray: datasets, training, batch harmonization."""
