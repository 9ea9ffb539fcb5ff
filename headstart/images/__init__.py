"""Bytes to pixels to the network's input: every stage and every prediction sees an image through these modules."""
