"""Benchmarks. Each is one command that runs both sides in one run and prints ratios with medians."""

import headstart as headstart  # sets OpenMP up before torch is imported
