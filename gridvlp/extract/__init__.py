"""The first stage: pixels to frozen grid maps. The only room that sees a photo."""
