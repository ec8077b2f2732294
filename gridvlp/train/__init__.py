"""The second stage: maps and sentences to models. It never sees a pixel."""
