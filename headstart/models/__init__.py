"""Backbones, their weights, heads, layer groups, and what is frozen."""
