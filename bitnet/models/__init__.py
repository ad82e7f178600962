"""What a model is and how it computes: a graph a file, their registry, the transformer."""
