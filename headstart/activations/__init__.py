"""Activations of the frozen body: the engine that computes them, the per-image cache and the assembled files."""
