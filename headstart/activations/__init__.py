"""Activations of the frozen body: the engine that computes them, and the file they are kept in."""
