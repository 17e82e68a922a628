"""Skopeo: its command line, its error texts, and its processes.

It knows nothing of which image is pushed when.
"""

from exporter.skopeo.command import Mode, Options, Skopeo
from exporter.skopeo.messages import MAX_SENTENCE, ChildrenFirst, explain
from exporter.skopeo.processes import GRACE_SECONDS, MAX_OUTPUT, Finished, Processes, Run
from exporter.skopeo.turn import Turn

__all__ = [
    "GRACE_SECONDS",
    "MAX_OUTPUT",
    "MAX_SENTENCE",
    "ChildrenFirst",
    "Finished",
    "Mode",
    "Options",
    "Processes",
    "Run",
    "Skopeo",
    "Turn",
    "explain",
]
