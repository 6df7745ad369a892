"""Benchmarks: what the project costs, measured on this machine."""
