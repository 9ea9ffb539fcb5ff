"""Headstart: transfer learning from a folder of images, at the speed of cached activations."""
