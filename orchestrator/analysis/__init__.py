"""Tables, intervals and comparisons of recorded results."""
