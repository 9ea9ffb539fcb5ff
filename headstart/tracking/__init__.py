"""MLflow: a parent run per pipeline execution, a child per trained stage, the model, the registry. No stage reads it back.

In modules of about 100 lines; no other folder of the library imports MLflow (tests/test_graph.py).
"""
