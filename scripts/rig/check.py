"""Looks at the disks of a restored point: containers, file systems, and the workload's records."""

import os
import struct
import zlib

from .run import Failure, run

RECORD, RECORDS_A_FILE = 4096, 64


class Records:
    """The records of one disk, in order: the numbers of the oldest and the newest."""

    def __init__(self, oldest, newest, torn):
        self.oldest = oldest
        self.newest = newest
        # What follows the newest whole record, in words; empty where nothing does.
        self.torn = torn


def check_point(disks, scratch, acknowledged, consistency, begun=None):
    """Checks the restored disks, (path, format) each, of one point of a guest.

    `acknowledged` is the newest record that the guest had reported as safe before the backup began;
    `begun`, where it is known, the newest that it can have begun when the backup ended. Gives the
    newest record of all.
    """
    quiesced = consistency == "filesystem-quiesced"
    found = []
    for index, (path, form) in enumerate(disks):
        raw = to_raw(path, form, scratch)
        try:
            found.append(check_disk(raw, scratch, index, len(disks), quiesced))
        except Failure as failure:
            raise Failure(f"{path}: {failure}") from failure
        finally:
            os.remove(raw)
    if quiesced:
        check_moment(found)
    for index, records in enumerate(found):
        # The newest acknowledged record of this very disk.
        safe = acknowledged - (acknowledged - index) % len(disks)
        if records.newest < safe:
            raise Failure(f"disk {index} ends with record {records.newest}, but the guest had "
                          f"synced {safe} before the backup began")
    newest = max(records.newest for records in found)
    if begun is not None and newest > begun:
        raise Failure(f"record {newest} is on a disk, but {begun} is the newest that the guest can "
                      "have begun")
    return newest


def to_raw(path, form, scratch):
    """The disk as the guest sees it, as a raw file of the checker's own."""
    raw = os.path.join(scratch, os.path.basename(path) + ".checked")
    if form == "qcow2":
        run("qemu-img", "check", "-q", path)
    run("qemu-img", "convert", "-f", form, "-O", "raw", path, raw)
    return raw


def check_disk(raw, scratch, index, disks, quiesced):
    """Checks the file system on a raw disk, which is changed by a replay, and its records."""
    if quiesced:
        features = run("dumpe2fs", "-h", raw).stdout
        if "needs_recovery" in features:
            raise Failure("the file system was not frozen: its journal needs a replay")
        fsck(raw)
    folder = os.path.join(scratch, "looked-at")
    os.makedirs(folder, exist_ok=True)
    # The kernel's own replay, as the guest would do it: e2fsck's would also repair.
    run("mount", "-t", "ext4", "-o", "loop,ro,noload" if quiesced else "loop", raw, folder)
    try:
        records = read_records(os.path.join(folder, "records"), index, disks)
    finally:
        run("umount", folder)
    if not quiesced:
        fsck(raw)
    return records


def fsck(raw):
    done = run("e2fsck", "-fn", raw, check=False)
    if done.returncode != 0:
        raise Failure(f"e2fsck finds damage:\n{done.stdout.strip()}")


def read_records(folder, index, disks):
    """Reads every record of a folder; the numbers must follow each other without a gap."""
    names = sorted(os.listdir(folder))
    oldest = newest = None
    torn = ""
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            content = file.read()
        for within in range(max(RECORDS_A_FILE, -(-len(content) // RECORD))):
            number = (int(name) * RECORDS_A_FILE + within) * disks + index
            record = content[within * RECORD:(within + 1) * RECORD]
            fault = record_fault(record, number)
            if fault:
                torn = torn or fault
            elif torn:
                raise Failure(f"record {number} is there, but before it: {torn}")
            elif newest is not None and number != newest + disks:
                raise Failure(f"record {number} follows {newest}: those between are missing")
            else:
                oldest = number if oldest is None else oldest
                newest = number
    if newest is None:
        raise Failure(f"there is no record at all: {torn or 'no file'}")
    if oldest != index and len(names) < 90:
        raise Failure(f"the oldest record is {oldest}, with {len(names)} files of records only")
    return Records(oldest, newest, torn)


def record_fault(record, number):
    """What is wrong with a record, in words; nothing where it is whole."""
    if not record:
        return f"record {number} is missing"
    if len(record) != RECORD:
        return f"record {number} has {len(record)} bytes"
    if not any(record):
        return f"record {number} is all zeros"
    magic, written = struct.unpack_from("<8sQ", record)
    if magic != b"QDRECORD" or zlib.crc32(record[:-4]) != struct.unpack_from("<I", record, 4092)[0]:
        return f"record {number} has a wrong checksum"
    if written != number:
        return f"record {written} is where {number} belongs"
    return ""


def check_moment(found):
    """Both disks are of one moment: record n was begun only when n-1 was safe on the other disk."""
    disks = len(found)
    newest = max(records.newest for records in found)
    for index, records in enumerate(found):
        expected = newest - (newest - index) % disks
        if records.newest != expected:
            raise Failure(f"the disks are of different moments: disk {index} ends with record "
                          f"{records.newest}, the newest of all is {newest}")
        if records.torn and "is missing" not in records.torn:
            raise Failure(f"the guest was not frozen: {records.torn}")
