"""Smaller networks: layers of fewer rows and columns, and the check that they compute what masked ones do."""
