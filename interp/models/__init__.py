"""The models: config, parts, and the three classes made of them."""
