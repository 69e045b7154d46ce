"""The version of interp."""

__version__ = "0.2.0"
