"""Activations of many texts: written to disk, read back memory-mapped."""
