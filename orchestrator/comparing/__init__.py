"""Results over seeds, side by side."""
