"""Targets: what a model answers for an image or a row. It may be one class, several classes, or a number.

`labels.py` says how a source writes labels, without torch. `single_label.py`, `multi_label.py` and `number.py` are what a
network learns from them, the same few functions each; `target.py` has what they share and finds the one that a file names.
`reports/` has a module of the same names: metrics, galleries and the sections of the report.
"""
