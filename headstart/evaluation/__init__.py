"""Evaluation: metrics, test-time augmentation, galleries and the report."""
