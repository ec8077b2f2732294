"""The paper's tables on any data.

gridvlp reproduce 1                        # on the sample world, two CPU cores
gridvlp reproduce 2 --scale full --data data
"""

from gridvlp.reproduce.reproduction import reproduce
from gridvlp.reproduce.scales import Scale, scales
from gridvlp.reproduce.tables import TABLES

__all__ = ["TABLES", "Scale", "reproduce", "scales"]
