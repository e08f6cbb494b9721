"""Search spaces: the file format, its values and names."""
