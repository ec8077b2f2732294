"""One HTML page about runs, and pictures of answers."""
