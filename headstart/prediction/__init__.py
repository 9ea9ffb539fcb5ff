"""Prediction: classify images given as bytes or as a folder with a trained model, or export the model as one file."""
