"""How a long job behaves: run folder, device and precision, progress, prefetch, signals, skips."""
