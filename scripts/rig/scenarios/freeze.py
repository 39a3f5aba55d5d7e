"""How long a guest stands still for a point, as it sees that itself."""

import os
import statistics

from ..guest import freeze_by_hand
from ..points import Chain
from ..run import Failure, run

PAIRS = 4
LARGE_MIB = 1024


def freeze(rig):
    """A point's freeze, beside an empty freeze and thaw, for a small disk and a large one (XFS)."""
    xfs = rig.filesystem("xfs", size="20G")
    ratios = {}
    for name, size in (("small", "192M"), ("large", "16G")):
        folder = os.path.join(xfs.mount, name)
        os.makedirs(folder)
        disks = rig.two_disks(folder, size=size)
        if name == "large":
            fill(disks[0], rig.scratch)
        guest = rig.guest(name, disks)
        guest.wait_for_records(100)
        chain = Chain(rig, guest, f"repo-{name}")
        chain.backup("--anchor", "reflink")
        empty, points, said = [], [], []
        for _ in range(PAIRS * rig.effort):
            empty.append(gap(guest, lambda: freeze_by_hand(guest, lambda: None)))
            point = chain.backup("--anchor", "reflink")
            points.append(point.gap_ms)
            said.append(point.freeze_ms)
        guest.forget()
        ratios[name] = statistics.median(points) / statistics.median(empty)
        allocated = sum(os.stat(disk.path).st_blocks for disk in disks) // 2048
        rig.say(f"{name}: {allocated} MiB in the images; empty pair "
                f"{statistics.median(empty):.0f} ms, point {statistics.median(points):.0f} ms in the "
                f"guest's own clock; {statistics.median(said):.0f} ms as qdelta counts, from asking "
                f"for the freeze to the end of the thaw (medians of {len(points)})")
        rig.promised(f"{name}: a point's freeze / an empty freeze and thaw", ratios[name], 1.5,
                     "x")
        if min(points) <= 0 or min(said) <= 0:
            raise Failure("a point without any freeze is no point of a running guest")
    # Each beside its own empty pair: the two guests do not run at the same time.
    rig.promised("the same, large / small disk", ratios["large"] / ratios["small"], 1.5, "x")


def gap(guest, action):
    """The guest's longest time without a safe record around an action."""
    guest.wait_for_records(10)
    since = guest.records_size()
    action()
    guest.wait_for_records(3)
    return guest.longest_gap_ms(since)


def fill(disk, scratch):
    """Lets a file on the disk take up its first GiB, with data that can't be left out."""
    raw, folder = disk.path + ".raw", os.path.join(scratch, "filling")
    os.makedirs(folder, exist_ok=True)
    run("qemu-img", "convert", "-O", "raw", disk.path, raw)
    run("mount", "-o", "loop", raw, folder)
    with open(os.path.join(folder, "large"), "wb") as file:
        piece = os.urandom(1 << 20)
        for number in range(LARGE_MIB):
            file.write(number.to_bytes(8, "little") + piece[8:])
    run("umount", folder)
    run("qemu-img", "convert", "-f", "raw", "-O", disk.format, raw, disk.path)
    os.remove(raw)
