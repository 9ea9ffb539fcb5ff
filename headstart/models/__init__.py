"""Backbones and their weights, heads, layer groups, freezing, and model files."""
