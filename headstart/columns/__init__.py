"""Structured data: what a table's columns mean, and their values as a network takes them. Nothing here imports torch."""
