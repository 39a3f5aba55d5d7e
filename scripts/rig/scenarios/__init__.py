"""What is tried, by name. Each scenario gets a `Rig` of its own and raises `Failure`."""

from . import anchors, selftest
from .base import Rig

SCENARIOS = {
    "rig": selftest.rig_can_fail,
    "anchors": anchors.anchors,
}
