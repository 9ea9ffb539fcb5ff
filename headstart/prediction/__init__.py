"""From a trained model and images to classes: of bytes, of a folder, over HTTP, in one file for elsewhere."""
