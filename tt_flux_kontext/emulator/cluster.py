"""``ttnn.cluster``."""

from enum import Enum

from . import device


class ClusterType(Enum):
    N150 = "n150"
    N300 = "n300"
    T3K = "t3k"
    GALAXY = "galaxy"
    P100 = "p100"
    P150 = "p150"
    P300 = "p300"
    P150_X4 = "p150x4"


def get_cluster_type() -> ClusterType:
    """Of the configured system."""
    return ClusterType(device.configured_system())
