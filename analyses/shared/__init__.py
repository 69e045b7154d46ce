"""The kit of analyses: panels, inputs, prompts, statistics, metrics, components."""
