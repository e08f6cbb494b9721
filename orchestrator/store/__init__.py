"""Where results lie, and how they get there whole."""
