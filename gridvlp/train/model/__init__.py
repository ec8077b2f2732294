"""The fusion model: layers, heads, checkpoints."""
