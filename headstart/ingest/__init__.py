"""From a folder to a manifest: the kind, label and split of each file. Nothing is written to the folder."""
