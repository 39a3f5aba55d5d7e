"""Several guests in one run: one that fails does not stop the others."""

import json
import os

from ..guest import Disk
from ..points import FREEZE_MAX, Chain, Point
from ..run import Failure


def several(rig):
    """`--all` with a guest that can't be backed up, and a disk that is left out (XFS)."""
    xfs, ext4 = rig.filesystem("xfs"), rig.filesystem("ext4")
    good = rig.guest("good", rig.two_disks(xfs.mount))
    refused = rig.guest("refused", [Disk(os.path.join(ext4.mount, "system.qcow2")).make()])
    stopped = rig.guest("stopped", [Disk(os.path.join(xfs.mount, "stopped.qcow2")).make()],
                        start=False)
    good.wait_for_records(50)
    chain = Chain(rig, good)
    acknowledged = good.newest()
    done = rig.qdelta("--json", "backup", "--all", "--repo", chain.repo, *FREEZE_MAX, check=False)
    domains = {entry["domain"]: entry for entry in json.loads(done.stdout)["domains"]}
    if sorted(domains) != ["good", "refused", "stopped"]:
        raise Failure(f"--all backed up {sorted(domains)}")
    outcomes = {name: entry["outcome"] for name, entry in domains.items()}
    if done.returncode == 0 or outcomes["refused"] != "failed":
        raise Failure(f"a guest that can't be backed up is not in the outcome: {outcomes}")
    if (outcomes["good"], outcomes["stopped"]) != ("done", "done"):
        raise Failure(f"one that failed stopped the others: {done.stdout}")
    if domains["stopped"]["result"]["consistency"] != "offline":
        raise Failure(f"a guest that never ran was backed up as {domains['stopped']['result']}")
    point = Point(domains["good"]["result"], acknowledged, good.newest() + 1, None)
    for guest in (refused, good):
        guest.wait_for_records(5)

    left_out = chain.backup("--exclude", "vdb")
    names = [disk["disk"] for disk in left_out.result["disks"]]
    if names != ["good/vda"] or "vdb" not in json.dumps(left_out.result["left_out"]):
        raise Failure(f"--exclude vdb took {names}: {left_out.result}")
    for guest in (good, refused):
        guest.pause()
    rig.say(f"outcomes {outcomes}; the good one is whole up to record {chain.check(point)}")
    stopped.forget()
