"""Built-in data sets and their downloads."""
