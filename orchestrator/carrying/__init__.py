"""A recorded network, carried on: loaded, done again, registered."""
