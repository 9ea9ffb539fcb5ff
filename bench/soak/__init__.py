"""What a year of operation does to a project, in an hour: `python -m bench.soak [PART …] [--rounds N]`."""
