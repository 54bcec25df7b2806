"""Brokers: ours beside the bare clients of their engines, and beside those of other projects.

`participants` says who takes part, `talk` runs the two processes of one, `room` compares two
workers with one, and `report` has the goals and the tables. The programs are in `peers/brokers/`.
"""

from benchmarks.brokers.report import tables
from benchmarks.brokers.run import FORM, run

__all__ = ["FORM", "run", "tables"]
