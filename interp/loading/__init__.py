"""From files to models: where they lie, what family they are of, how tensors are laid out."""
