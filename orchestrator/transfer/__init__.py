"""A logged network taken on to another data set: found, fitted, kept with its sweep, found again by hash."""
