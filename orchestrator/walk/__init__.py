"""A trial is a walk over stages: dense -> (prune -> recover -> measure) x rounds."""
