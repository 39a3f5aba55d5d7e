"""Rolling a guest's own disks back where they lie, also with kills in the middle."""

import collections
import os
import subprocess
import time

from ..check import check_point
from ..faults import count_calls, killed_after, killed_at_call
from ..guest import Disk
from ..points import Chain, compare
from ..run import Failure, run

KILLS = 4
# At which calls the kills come, in turn; where there is none, at any moment.
KILLED_AT = ["pwrite64", None, "fsync", None]
TARGETS = ("vda", "vdb")


def rollback(rig):
    """A qcow2 and a raw disk go back in place, over kills; what was there is in a point (XFS)."""
    xfs = rig.filesystem("xfs")
    disks = [Disk(os.path.join(xfs.mount, "system.qcow2")).make(),
             Disk(os.path.join(xfs.mount, "data.raw"), form="raw").make()]
    guest = rig.guest("rolled", disks)
    chain = Chain(rig, guest)
    guest.wait_for_records(200)
    point = chain.backup()
    guest.wait_for_records(1000)
    _refused(rig, chain, point, "which runs")
    guest.wait_for_records(20)
    guest.save_memory()
    _refused(rig, chain, point, f"virsh managedsave-remove {guest.name}")
    guest.resume_memory()
    rig.say("it was refused while the guest ran, and while its memory was saved")
    guest.power_off()
    late = guest.newest()

    kept, rng = [], rig.random()
    for target, disk in zip(TARGETS, disks):
        what = f"{guest.name}/{target}@{point.time}"
        before = _copy(disk)
        report = rig.qdelta_json("restore", what, "--in-place", "--repo", chain.repo)
        if not report["safety_point"] or not report["bytes_changed"]:
            raise Failure(f"nothing was kept, or nothing was changed: {report}")
        kept.append(report["safety_point"])
        _holds(rig, chain, f"{guest.name}/{target}@{report['safety_point']}", before)
        left = _back_and_killed(rig, chain, disk, before, what, rng)
        rig.say(f"{target} ({disk.format}): {report['bytes_changed'] >> 10} KiB differed; rolled back "
                f"again after each of {left.total()} tries to kill it, which left "
                + ", ".join(f"{count} {how}" for how, count in sorted(left.items())))
    newest = check_point([(disk.path, disk.format) for disk in disks], rig.scratch,
                         point.acknowledged, point.consistency, point.begun)
    size = guest.records_size()
    guest.start()
    first = guest.reports(size)[0][0]
    if first != newest + 1:
        raise Failure(f"the guest goes on with record {first}, not with {newest + 1}")
    rig.say(f"the guest was at record {late}, and went on behind {newest}; then it rolls forward")
    guest.power_off()
    for target, point_kept in zip(TARGETS, kept):
        rig.qdelta("restore", f"{guest.name}/{target}@{point_kept}", "--in-place", "--no-point",
                   "--repo", chain.repo)
    check_point([(disk.path, disk.format) for disk in disks], rig.scratch, late, "offline", late + 1)
    report = rig.qdelta_json("restore", "--domain", guest.name, "--at", point.time, "--in-place",
                             "--repo", chain.repo)
    again = check_point([(disk.path, disk.format) for disk in disks], rig.scratch,
                        point.acknowledged, point.consistency, point.begun)
    if again != newest or len(report["disks"]) != len(disks):
        raise Failure(f"both disks were rolled back to record {again}, not {newest}: {report}")
    rig.say("and both disks back by one command")


def _refused(rig, chain, point, words):
    """Neither a disk nor the whole guest goes back, and it is said why."""
    name = chain.guest.name
    for what in ([f"{name}/vda@{point.time}"], ["--domain", name, "--at", point.time]):
        done = rig.qdelta("restore", *what, "--in-place", "--repo", chain.repo, check=False)
        if done.returncode != 5 or words not in done.stderr:
            raise Failure(f"this was to be refused because of '{words}': status {done.returncode}\n"
                          f"{done.stdout}{done.stderr}")


def _back_and_killed(rig, chain, disk, before, what, rng):
    """Roll backs of the disk are killed, and others end them; what the kills left, and how often."""
    command = ["restore", what, "--in-place", "--no-point", "--repo", chain.repo]
    after = os.path.join(rig.scratch, "after")
    rig.qdelta("restore", what, after, "--repo", chain.repo, "--force", "--format", "raw")
    seconds, calls = _seconds(rig, disk, before, command), _calls(rig, disk, before, command)
    left = collections.Counter()
    for number in range(KILLS * rig.effort):
        _put(disk, before)
        # Half of the kills come at a write or a sync, which no clock would meet for certain; the
        # others at any moment, also behind the end.
        call = KILLED_AT[number % len(KILLED_AT)]
        if call:
            first = 2 if call == "pwrite64" else 1
            if disk.format == "raw" and call == "fsync":
                # An earlier one gives the room of the zeros back before there are data.
                first = calls[call]
            killed_at_call(rig, disk.path, command, call, rng.randint(first, calls[call]))
        else:
            killed_after(_start(rig, command), rng.uniform(0, seconds))
        if disk.format == "qcow2":
            done = run("qemu-img", "check", disk.path, check=False)
            if done.returncode not in (0, 3):
                raise Failure(f"a kill left a damaged image:\n{done.stdout}")
        found = _what_is_left(_copy(disk), before, after)
        left[found] += 1
        if disk.format == "qcow2" and found == "half of each":
            raise Failure("a qcow2 image is neither what it was, nor what it was to be")
        # All of a raw disk is written before it is synced for the last time.
        expected = {"pwrite64": "half of each", "fsync": "all of the old disk"}.get(call, found)
        if disk.format == "raw" and found != expected:
            raise Failure(f"a raw disk is {found}, not {expected}, after a kill at {call}")
        rig.qdelta(*command)
        _holds(rig, chain, what, _copy(disk))
    return left


def _what_is_left(now, before, after):
    for raw, what in ((before, "as it was"), (after, "all of the old disk")):
        if run("cmp", "-s", now, raw, check=False).returncode == 0:
            return what
    return "half of each"


def _put(disk, raw):
    """Makes the disk what it was."""
    run("qemu-img", "convert", "-f", "raw", "-O", disk.format, raw, disk.path)


def _seconds(rig, disk, before, command):
    """The seconds of a roll back that nobody disturbs."""
    _put(disk, before)
    begin = time.monotonic()
    rig.qdelta(*command)
    return time.monotonic() - begin


def _calls(rig, disk, before, command):
    """How often a roll back writes to the disk, and syncs it."""
    _put(disk, before)
    calls = count_calls(rig, disk.path, command)
    if calls["pwrite64"] < 2 or not calls["fsync"]:
        raise Failure(f"a kill in the middle needs more than {calls} on {disk.path}")
    return calls


def _start(rig, command):
    return subprocess.Popen([rig.qdelta_program, *command], stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env=rig.environment())


def _copy(disk):
    """What the disk is now, as a raw file of its own."""
    path = disk.path + ".now"
    if os.path.exists(path):
        path += ".later"
    run("qemu-img", "convert", "-f", disk.format, "-O", "raw", disk.path, path)
    return path


def _holds(rig, chain, point, raw):
    """A point restores to exactly these bytes."""
    restored = os.path.join(rig.scratch, "held")
    rig.qdelta("restore", point, restored, "--repo", chain.repo, "--force", "--format", "raw")
    compare(restored, raw)
