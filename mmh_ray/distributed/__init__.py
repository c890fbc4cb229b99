"""Everything that uses Ray: the cluster, datasets, training, preparing, harmonizing and evaluating archives."""
