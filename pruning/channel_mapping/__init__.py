"""Which channels of a network belong together: the network itself is asked, and not a table of operators."""
