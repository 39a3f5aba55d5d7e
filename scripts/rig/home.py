"""Whether a guest is at home: on its own images, with nothing of a backup left in it or beside them."""

import glob
import json
import os
import re
import subprocess

from .libvirt import virsh
from .run import Failure, output

NAME = r"qdelta-\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{8}"
OVERLAY = re.compile(rf"\.{NAME}")
OURS = re.compile(NAME)


def folders(guest):
    return {os.path.dirname(disk.path) for disk in guest.disks}


def has_overlays(guest):
    """Whether there is an overlay, used or not."""
    return any(OVERLAY.search(name) for folder in folders(guest) for name in os.listdir(folder))


def is_away(guest):
    """Whether a disk is on an overlay, as far as libvirt can be asked."""
    return bool(OVERLAY.search(virsh("dumpxml", guest.name, check=False).stdout))


def job_of(guest):
    """The guest's backup job, if there is one."""
    return virsh("backup-dumpxml", guest.name, check=False, stderr=subprocess.DEVNULL).stdout.strip()


def checkpoints_of(guest):
    return virsh("checkpoint-list", guest.name, "--name").stdout.split()


def expect_at_home(guest, repositories=2, checkpoints=0):
    """Fails unless the guest is on its own images, by both definitions, and nothing is left of a backup: overlays,
    jobs, scratch files, sockets, clones, notes, nodes; of bitmaps and checkpoints, what the next one needs stays."""
    for options in ([], ["--inactive"]):
        text = virsh("dumpxml", guest.name, *options).stdout
        if OVERLAY.search(text):
            raise Failure(f"{guest.name} is on an overlay after a backup:\n{text}")
    if job_of(guest):
        raise Failure(f"a backup job is left in {guest.name}: {job_of(guest)}")
    ours = [name for name in checkpoints_of(guest) if OURS.search(name)]
    if len(ours) > checkpoints:
        raise Failure(f"checkpoints are left in {guest.name}: {ours}")
    places = [*folders(guest), *glob.glob("/var/lib/libvirt/qemu/domain-*"), "/run/libvirt/qemu"]
    left = [os.path.join(place, name) for place in places for name in os.listdir(place) if OURS.search(name)]
    left += [path for place in folders(guest) for path in glob.glob(os.path.join(place, ".qdelta", "*"))]
    left += glob.glob("/run/qdelta/*")
    if left:
        raise Failure(f"of a backup of {guest.name} there is left: {left}")
    running = guest.state() in ("running", "paused")
    for names in _bitmaps_of_qemu(guest) if running else map(_bitmaps_of_image, guest.disks):
        # One of each repository for either command, and the map or end of one.
        kept = [name for name in names if OURS.search(name)]
        if len(kept) > 2 * repositories + checkpoints:
            raise Failure(f"bitmaps are left in {guest.name}: {kept}")


def _bitmaps_of_qemu(guest):
    """The names of the bitmaps of each of its block nodes."""
    nodes = _asked(guest, "query-named-block-nodes", flat=True)
    left = [(node["node-name"], node.get("file")) for node in nodes
            if node["node-name"].startswith("qdelta") or OURS.search(node.get("file") or "")]
    left += [export["id"] for export in _asked(guest, "query-block-exports")]
    if left:
        raise Failure(f"nodes or exports of a backup are left in {guest.name}: {left}")
    return [[bitmap["name"] for bitmap in node.get("dirty-bitmaps", []) if "name" in bitmap] for node in nodes]


def _asked(guest, order, **arguments):
    text = json.dumps({"execute": order, "arguments": arguments})
    return json.loads(virsh("qemu-monitor-command", guest.name, text).stdout)["return"]


def _bitmaps_of_image(disk):
    said = json.loads(output("qemu-img", "info", "-U", "--output=json", disk.path))
    return [it["name"] for it in said.get("format-specific", {}).get("data", {}).get("bitmaps", [])]
