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
LIST_NODES = json.dumps({"execute": "query-named-block-nodes", "arguments": {"flat": True}})
LIST_EXPORTS = json.dumps({"execute": "query-block-exports"})


def folders(guest):
    return {os.path.dirname(disk.path) for disk in guest.disks}


def files(guest):
    """The files in the folders of its images, and below."""
    return [os.path.join(place, name) for folder in folders(guest) for place, _, names in os.walk(folder)
            for name in names]


def has_overlays(guest):
    """Whether there is an overlay, used or not."""
    return any(OVERLAY.search(os.path.basename(path)) for path in files(guest))


def is_begun(guest):
    """Whether a backup has made its moment, or is about to: there is an overlay or a scratch file."""
    return any(OURS.search(os.path.basename(path)) for path in files(guest))


def is_away(guest):
    """Whether a disk is on an overlay, as far as libvirt can be asked."""
    return bool(OVERLAY.search(virsh("dumpxml", guest.name, check=False).stdout))


def job_of(guest):
    """The guest's backup job, if there is one."""
    return virsh("backup-dumpxml", guest.name, check=False, stderr=subprocess.DEVNULL).stdout.strip()


def expect_at_home(guest, repositories=2, checkpoints=0):
    """Fails unless the guest is on its own images, by both definitions, and nothing is left of a backup: overlays,
    jobs, scratch files, sockets, clones, notes, nodes; of bitmaps and checkpoints, what the next one needs stays."""
    name = f"'{guest.name}'"
    text, state, known, nodes, exports = _virsh(
        f"dumpxml {name}; dumpxml {name} --inactive", f"domstate {name}", f"checkpoint-list {name} --name",
        f"qemu-monitor-command {name} '{LIST_NODES}'", f"qemu-monitor-command {name} '{LIST_EXPORTS}'")
    if OVERLAY.search(text):
        raise Failure(f"{guest.name} is on an overlay after a backup:\n{text}")
    if job_of(guest):
        raise Failure(f"a backup job is left in {guest.name}: {job_of(guest)}")
    ours = [name for name in known.split() if OURS.search(name)]
    if len(ours) > checkpoints:
        raise Failure(f"checkpoints are left in {guest.name}: {ours}")
    left = [path for path in files(guest) if OURS.search(path) or "/.qdelta/" in path]
    left += [path for folder in ("/var/lib/libvirt/qemu/domain-*", "/run/libvirt/qemu")
             for path in glob.glob(os.path.join(folder, "*")) if OURS.search(path)]
    left += glob.glob("/run/qdelta/*")
    if left:
        raise Failure(f"of a backup of {guest.name} there is left: {left}")
    running = state.strip() in ("running", "paused")
    for names in _bitmaps_of_qemu(guest, nodes, exports) if running else map(_bitmaps_of_image, guest.disks):
        # One of each repository for either command, and the map or end of one.
        kept = [name for name in names if OURS.search(name)]
        if len(kept) > 2 * repositories + checkpoints:
            raise Failure(f"bitmaps are left in {guest.name}: {kept}")


def _virsh(*lines):
    """What virsh prints for each of these lines, by one run: of one that fails, nothing."""
    end = "end-of-an-answer"
    return virsh("; ".join(f"{line}; echo {end}" for line in lines), check=False,
                 stderr=subprocess.DEVNULL).stdout.split(end)[:len(lines)]


def _bitmaps_of_qemu(guest, nodes, exports):
    """The names of the bitmaps of each of its block nodes."""
    nodes = json.loads(nodes)["return"]
    left = [(node["node-name"], node.get("file")) for node in nodes
            if node["node-name"].startswith("qdelta") or OURS.search(node.get("file") or "")]
    left += [export["id"] for export in json.loads(exports)["return"]]
    if left:
        raise Failure(f"nodes or exports of a backup are left in {guest.name}: {left}")
    return [[bitmap["name"] for bitmap in node.get("dirty-bitmaps", []) if "name" in bitmap] for node in nodes]


def _bitmaps_of_image(disk):
    said = json.loads(output("qemu-img", "info", "-U", "--output=json", disk.path))
    return [it["name"] for it in said.get("format-specific", {}).get("data", {}).get("bitmaps", [])]
