"""The pre-training corpus: sources, selection, cache, order, leakage guard."""
