"""The official data sets on disk: JSON, image ids, names of photos."""
