"""Stress tests that do to a project in hours what a year of operation does: `python -m bench.soak [PART …] [--rounds N]`."""
