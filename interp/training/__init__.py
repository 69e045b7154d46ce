"""How the bundled models were made, and a model from any text."""
