"""From a folder to a manifest: what each file is, its label, its split; nothing in the folder is written."""
