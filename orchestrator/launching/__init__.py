"""A sweep around its engine: what it may use, who runs a point, what is shown, how it ends."""
