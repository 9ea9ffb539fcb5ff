"""Benchmarks: one command each, both sides in one run, ratios with medians."""

import headstart as headstart  # sets OpenMP up before torch is imported
