"""Latency of recorded networks: dense, masked, cut out and in CSR."""
