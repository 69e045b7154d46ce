"""Analyses that serve a study: commands, but no section of a report."""
