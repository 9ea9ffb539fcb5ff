"""From a folder of images to a manifest, and from a file to pixels."""
