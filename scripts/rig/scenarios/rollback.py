"""Rolling a guest's own disks back where they lie, also with kills in the middle."""

import os
import random
import signal
import subprocess
import time

from ..check import check_point
from ..guest import Disk
from ..points import Chain, compare
from ..run import Failure, run

KILLS = 3
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

    kept = []
    for target, disk in zip(TARGETS, disks):
        what = f"{guest.name}/{target}@{point.time}"
        before = _copy(disk)
        report = rig.qdelta_json("restore", what, "--in-place", "--repo", chain.repo)
        if not report["kept"] or not report["bytes_changed"]:
            raise Failure(f"nothing was kept, or nothing was changed: {report}")
        kept.append(report["kept"])
        _holds(rig, chain, f"{guest.name}/{target}@{report['kept']}", before)
        for _ in range(KILLS * rig.effort):
            _back_and_killed(rig, chain, disk, before, what)
        rig.say(f"{target} ({disk.format}): {report['bytes_changed'] >> 10} KiB differed; rolled back "
                f"again after each of {KILLS * rig.effort} kills")
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


def _back_and_killed(rig, chain, disk, before, what):
    """The disk is what it was; a roll back of it is killed; another one ends."""
    run("qemu-img", "convert", "-f", "raw", "-O", disk.format, before, disk.path)
    command = [rig.qdelta_program, "restore", what, "--in-place", "--no-point", "--repo", chain.repo]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=rig.environment())
    time.sleep(random.uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    if disk.format == "qcow2":
        done = run("qemu-img", "check", disk.path, check=False)
        if done.returncode not in (0, 3):
            raise Failure(f"a kill after {time.monotonic() - begin:.3f} s left a damaged image:\n"
                          f"{done.stdout}")
    rig.qdelta(*command[1:])
    _holds(rig, chain, what, _copy(disk))


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
