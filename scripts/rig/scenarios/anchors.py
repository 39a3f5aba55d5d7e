"""Images into which qdelta wrote a snapshot or a bitmap, in the hands of a real QEMU."""

import os

from ..points import compare
from ..run import Failure, run

ROUNDS = 1


def anchors(rig):
    """Two versions of QEMU list qdelta's snapshots and bitmaps as their own, and write on (ext4)."""
    filesystem = rig.filesystem("ext4")
    for qemu in rig.qemu_versions():
        for anchor in ("snapshot", "bitmap"):
            folder = os.path.join(filesystem.mount, f"{qemu.version}-{anchor}")
            os.makedirs(folder)
            _one(rig, qemu, anchor, folder)


def _one(rig, qemu, anchor, folder):
    """A real guest writes into the image between the points, each one with a new anchor."""
    disk = rig.two_disks(folder)[0]
    name = f"{anchor}-{qemu.version.replace('.', '-')}"
    guest = rig.guest(name, [disk], emulator=qemu.program("qemu-system-x86_64"), start=False)
    repo = os.path.join(folder, "repo")
    rig.qdelta("init", repo)
    previous, points = None, []
    for number in range(1 + ROUNDS * rig.effort):
        before = qemu.listed(anchor, disk.path)
        report = rig.qdelta_json("backup", disk.path, "--repo", repo, "--disk", name,
                                 "--anchor", anchor)
        points.append(report["point"])
        expected = anchor if number else "scan"
        if report["tracker"] != expected:
            raise Failure(f"the point was made by {report['tracker']}, not by {expected}: {report}")
        new = [entry for entry in qemu.listed(anchor, disk.path) if entry not in before]
        if len(new) != 1 or not new[0].startswith("qdelta-"):
            raise Failure(f"QEMU {qemu.version} lists {new} as new after --anchor {anchor}")
        if previous in qemu.listed(anchor, disk.path):
            raise Failure(f"the old anchor {previous} is still in the image")
        previous = new[0]
        qemu.check(disk.path)
        _restores(rig, qemu, repo, f"{name}@{report['point']}", disk)
        if anchor == "snapshot":
            _holds_the_point(rig, qemu, disk, previous, repo, f"{name}@{report['point']}")
        else:
            qemu.expect_recording(disk.path, previous)
        _run_guest(guest)
        qemu.check(disk.path)
        if previous not in qemu.listed(anchor, disk.path):
            raise Failure(f"QEMU {qemu.version} lost the anchor {previous} while the guest ran")
        if anchor == "bitmap":
            qemu.expect_recording(disk.path, previous, dirty=True)
    _after_a_kill(rig, qemu, anchor, guest, repo)
    guest.forget()
    rig.say(f"QEMU {qemu.version} and {anchor}: {len(points)} anchors written, listed, written on, "
            "checked clean; every point equal to what qemu-img reads")


def _after_a_kill(rig, qemu, anchor, guest, repo):
    """A QEMU that was killed has left its bitmap in use: the point must not believe it."""
    disk = guest.disks[0]
    guest.start()
    guest.wait_for_records(60)
    guest.kill_qemu()
    report = rig.qdelta_json("backup", disk.path, "--repo", repo, "--disk", guest.name,
                             "--anchor", anchor)
    if anchor == "bitmap" and report["tracker"] == "bitmap":
        raise Failure(f"a bitmap was believed whose QEMU was killed: {report}")
    _restores(rig, qemu, repo, f"{guest.name}@{report['point']}", disk)
    left = qemu.listed(anchor, disk.path)
    if len(left) != 1:
        raise Failure(f"after a kill and a new anchor QEMU {qemu.version} lists {left}")
    qemu.remove(anchor, disk.path, left[0])
    qemu.check(disk.path, may_leak=True)
    report = rig.qdelta_json("backup", disk.path, "--repo", repo, "--disk", guest.name)
    if report["tracker"] != "scan":
        raise Failure(f"without its anchor a point was made by {report['tracker']}: {report}")
    _restores(rig, qemu, repo, f"{guest.name}@{report['point']}", disk)


def _run_guest(guest):
    guest.start()
    guest.wait_for_records(60)
    guest.power_off()


def _restores(rig, qemu, repo, point, disk):
    restored, expected = (os.path.join(rig.scratch, name) for name in ("restored", "expected"))
    rig.qdelta("restore", point, restored, "--repo", repo, "--force")
    run(qemu.program("qemu-img"), "convert", "-O", "raw", disk.path, expected)
    compare(restored, expected)


def _holds_the_point(rig, qemu, disk, snapshot, repo, point):
    """What QEMU reads from the snapshot is what the point restores."""
    restored, expected = (os.path.join(rig.scratch, name) for name in ("restored", "expected"))
    rig.qdelta("restore", point, restored, "--repo", repo, "--force")
    run(qemu.program("qemu-img"), "convert", "-l", f"snapshot.name={snapshot}", "-O", "raw",
        disk.path, expected)
    compare(restored, expected)
