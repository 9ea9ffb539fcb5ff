"""MLflow: a parent run per pipeline execution, a child run per trained stage, the logged model and the model registry.

No stage reads anything back from MLflow, and no other folder of the library imports it (tests/test_graph.py).
"""
