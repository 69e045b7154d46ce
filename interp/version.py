"""The version of interp."""

__version__ = "0.1.0"
