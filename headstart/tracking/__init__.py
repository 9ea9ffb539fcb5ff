"""MLflow: a parent run per pipeline execution, a child per trained stage, the model, the registry. No stage reads it back."""
