"""The sample world: generated scenes in the official formats, to try everything on."""

from gridvlp.sample.world import SampleSummary, write_sample

__all__ = ["SampleSummary", "write_sample"]
