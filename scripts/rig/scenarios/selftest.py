"""Shows that the rig itself works, and that its checks can fail. No qdelta here."""

import os
import shutil

from ..check import check_point
from ..guest import Disk, clone, freeze_by_hand
from ..run import Failure, run
from .base import expect_failure


def rig_can_fail(rig):
    """The checker passes good copies, made with virsh and cp, and notices every kind of bad one."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("selftest", rig.two_disks(xfs.mount))
    guest.wait_for_records(200)

    early = _copy_frozen(guest, xfs.mount, "early")
    guest.wait_for_records(200)
    acknowledged = guest.newest()
    late = _copy_frozen(guest, xfs.mount, "late")
    begun = guest.newest() + 1
    newest = check_point(late, rig.scratch, acknowledged, "filesystem-quiesced", begun)
    rig.say(f"a frozen copy is whole up to record {newest}; {acknowledged} was acknowledged")
    guest.pause()
    _boots(rig, late, newest)
    guest.resume()

    def checking(disks, consistency="filesystem-quiesced", safe=0):
        return lambda: check_point(disks, rig.scratch, safe, consistency)

    expect_failure("a copy that is too old", "but the guest had synced",
                   checking(early, safe=acknowledged))
    expect_failure("disks of two moments", "different moments", checking([early[0], late[1]]))
    expect_failure("disks in the wrong order", "where", checking(late[::-1]))
    _copies_without_freeze(rig, guest, xfs.mount, checking)
    _damaged_copies(rig, late, checking)


def _boots(rig, disks, newest):
    """A copy of the copy boots, its agent answers, and the workload goes on behind its newest."""
    copies = []
    for path, form in disks:
        copies.append(Disk(path + ".boot", form))
        clone(path, copies[-1].path)
    guest = rig.guest("booted", copies)
    first = guest.reports()[0][0]
    if first != newest + 1:
        raise Failure(f"the booted copy goes on with record {first}, not with {newest + 1}")
    guest.forget()
    for copy in copies:
        os.remove(copy.path)


def _copy_frozen(guest, folder, name):
    copies = [(os.path.join(folder, f"{name}-{index}"), disk.format)
              for index, disk in enumerate(guest.disks)]

    def copy():
        for disk, (path, _) in zip(guest.disks, copies):
            clone(disk.path, path)

    freeze_by_hand(guest, copy)
    return copies


def _copies_without_freeze(rig, guest, folder, checking):
    """Without a freeze a copy is crash-consistent at best, and each disk for itself."""
    acknowledged = guest.newest()
    copies = []
    for index, disk in enumerate(guest.disks):
        copies.append((os.path.join(folder, f"loose-{index}"), disk.format))
        clone(disk.path, copies[-1][0])
        # QEMU counts a cluster before a table leads to it: in between, a copy has one too many.
        run("qemu-img", "check", "-q", "-r", "leaks", copies[-1][0])
        guest.wait_for_records(20)
    newest = check_point(copies, rig.scratch, acknowledged, "crash-consistent")
    rig.say(f"a copy without freeze is whole after a replay, up to record {newest}")
    expect_failure("a copy without freeze", "was not frozen", checking(copies))


def _damaged_copies(rig, disks, checking):
    """One thing is broken in a good copy at a time."""
    def changed(change):
        path = os.path.join(rig.scratch, "damaged")
        run("qemu-img", "convert", "-f", disks[0][1], "-O", "raw", disks[0][0], path)
        folder = os.path.join(rig.scratch, "damaging")
        os.makedirs(folder, exist_ok=True)
        run("mount", "-o", "loop", path, folder)
        try:
            change(os.path.join(folder, "records"))
        finally:
            run("umount", folder)
        return [(path, "raw"), disks[1]]

    def in_the_middle(change):
        def with_file(folder):
            names = sorted(os.listdir(folder))
            with open(os.path.join(folder, names[len(names) // 2 - 1]), "r+b") as file:
                change(file)
        return with_file

    def zeros(file):
        file.seek(4096 * 5)
        file.write(bytes(4096))

    def one_bit(file):
        file.seek(4096 * 7 + 2000)
        byte = file.read(1)[0]
        file.seek(4096 * 7 + 2000)
        file.write(bytes([byte ^ 1]))

    def swapped(file):
        file.seek(0)
        first, second = file.read(4096), file.read(4096)
        file.seek(0)
        file.write(second + first)

    def without_a_file(folder):
        names = sorted(os.listdir(folder))
        os.remove(os.path.join(folder, names[len(names) // 2 - 1]))

    for what, words, change in [
            ("a hole in a file of records", "is all zeros", in_the_middle(zeros)),
            ("a record with one bit turned", "wrong checksum", in_the_middle(one_bit)),
            ("records out of order", "where", in_the_middle(swapped)),
            ("a lost tail of a file", "is missing", in_the_middle(lambda file: file.truncate(8192))),
            ("a lost file of records", "are missing", without_a_file)]:
        expect_failure(what, words, checking(changed(change)))
    good = changed(lambda folder: None)
    checking(good)()

    # The bitmaps of the file system's first group: e2fsck must see that.
    with open(good[0][0], "r+b") as file:
        offset = _first_inode_bitmap(good[0][0])
        file.seek(offset)
        file.write(bytes(512))
    expect_failure("damage in the file system", "e2fsck finds damage", checking(good))
    shutil.copyfile(disks[0][0], good[0][0])
    with open(good[0][0], "r+b") as file:
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block)
        file.write(bytes(64))
    expect_failure("damage in the container", "qemu-img check",
                   checking([(good[0][0], "qcow2"), disks[1]]))
    rig.say("every damage was noticed")


def _first_inode_bitmap(raw):
    for line in run("dumpe2fs", raw).stdout.splitlines():
        if "Inode bitmap at" in line:
            return int(line.split("Inode bitmap at")[1].split()[0].rstrip(",")) * _block_size(raw)
    raise Failure("dumpe2fs names no inode bitmap")


def _block_size(raw):
    for line in run("dumpe2fs", "-h", raw).stdout.splitlines():
        if line.startswith("Block size:"):
            return int(line.split()[-1])
    raise Failure("dumpe2fs names no block size")
