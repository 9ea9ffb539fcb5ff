"""What the report shows of each kind of target: metrics, rankings of images, pictures, and a template for its sections."""
