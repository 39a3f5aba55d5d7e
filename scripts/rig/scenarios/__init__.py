"""What is tried, by name. Each scenario gets a `Rig` of its own and raises `Failure`."""

from . import (anchors, backups, clones, command_lives, drill, fallbacks, freeze, guest_lives, held, instant, kills,
               lives, machine, meanwhile, memory, overlays, peers, rollback, selftest, several, shared, states)
from .base import Rig

SCENARIOS = {
    "rig": selftest.rig_can_fail,
    "backups": backups.backups,
    "freeze": freeze.freeze,
    "kills": kills.kills,
    "virsh": kills.virsh,
    "agent": kills.agent,
    "states": states.states,
    "ext4": states.ext4,
    "overlays": overlays.overlays,
    "overlay-kills": overlays.overlay_kills,
    "live-bitmaps": overlays.live_bitmaps,
    "reads": overlays.reads,
    "meanwhile": meanwhile.meanwhile,
    "fallbacks": fallbacks.fallbacks,
    "stops": fallbacks.stops,
    "machine": machine.machine,
    "memory": memory.memory,
    "instant": instant.instant,
    "pulled-home": instant.pulled_home,
    "drill": drill.drill,
    "boots": drill.boots,
    "rollback": rollback.rollback,
    "several": several.several,
    "anchors": anchors.anchors,
    "lives": lives.lives,
    "guest-lives": guest_lives.guest_lives,
}
# Proofs that go on for as long as one likes (QDELTA_SWEEP), and of what others cover in part: only when they are asked for.
SWEEPS = {
    "savevm": memory.savevm,
    "held-job": held.held_job,
    "shared-folders": shared.shared_folders,
    "command-lives": command_lives.command_lives,
}
# Not proofs but figures, for the documents: only when they are asked for.
MEASUREMENTS = {
    "clones": clones.clones,
    "instant-boots": instant.instant_boots,
    "virtnbdbackup": peers.virtnbdbackup,
}
