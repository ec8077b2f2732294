"""The sample world: generated scenes in the official formats, to try everything on."""

from pathlib import Path

from gridvlp.sample.world import SampleSummary, write_sample

SETTINGS = Path(__file__).with_name("gridvlp.yaml")
"""Option values of all commands that suit the sample world."""

__all__ = ["SETTINGS", "SampleSummary", "write_sample"]
