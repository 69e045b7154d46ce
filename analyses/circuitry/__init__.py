"""Circuits: a model's graph, runs of a part of it, scores of its edges, how well and how surely a part does it all."""
