"""The training loop, optimizers, evaluation and checkpoints: pure torch."""
