"""One trial: dense training, then (prune, recover, measure) for every round."""
