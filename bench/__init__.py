"""Benchmarks: one command each, both sides in one run, ratios with medians."""
