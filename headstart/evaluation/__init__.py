"""Evaluation: metrics, test-time augmentation, prediction, the report."""
