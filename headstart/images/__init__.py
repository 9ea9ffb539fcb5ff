"""From a file's bytes to pixels to the network's input. Every stage and every prediction reads images with these modules."""
