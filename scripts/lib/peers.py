"""The programs that are compared: how each does each job.

A job is a method; a program that can't do it has none. Every method gives a `Run`, whose time
includes the sync of what was written.
"""

import json
import os
import shutil

from .measure import QDELTA, allocated, first_line, run

ZSTD_QCOW2 = ("-c", "-o", "compression_type=zstd", "-m", "8", "-W")


def fresh(*paths):
    """Removes what an earlier run left at these paths."""
    for path in paths:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.remove(path)


class Peer:
    """A program with a place of its own: `store` for backups, `output` for what is restored."""
    name = ""
    needs = ()

    def __init__(self, work, image):
        self.image, self.place = image, os.path.join(work, self.name.replace(" ", "-"))
        os.makedirs(self.place, exist_ok=True)
        self.store, self.output = os.path.join(self.place, "store"), os.path.join(self.place, "out")

    def version(self):
        """What it says of itself."""
        return first_line(self.needs[0], "--version")

    def size(self):
        """Bytes that its backups take."""
        return allocated(self.store)

    def drop(self):
        """Removes what it restored."""
        fresh(self.output)


class Qdelta(Peer):
    name = "qdelta"
    flags = ("--track", "scan", "--anchor", "none")

    def qdelta(self, *arguments):
        return run(QDELTA, "--repo", self.store, "--json", "--quiet", *arguments)

    def version(self):
        return first_line(QDELTA, "--version")

    def full(self):
        fresh(self.store)
        self.qdelta("init")
        return self.qdelta("backup", self.image, "--disk", "disk", "--kind", "full", *self.flags)

    def increment(self):
        return self.qdelta("backup", self.image, "--disk", "disk", *self.flags)

    def restore_raw(self):
        fresh(self.output)
        return self.qdelta("restore", "disk", self.output, "--format", "raw")

    def restore_qcow2(self):
        fresh(self.output)
        return self.qdelta("restore", "disk", self.output, "--format", "qcow2")

    def verify(self):
        return self.qdelta("verify", "disk")

    def replays(self, image):
        """Whether the restored disk reads like the image: proof that the work was done."""
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.output, image)


class Tracked(Qdelta):
    """The same program, told by QEMU's bitmap what changed."""
    name = "qdelta, tracked"
    flags = ("--anchor", "bitmap")
    restore_raw = restore_qcow2 = verify = None


class QemuZstd(Peer):
    name = "qemu-img convert, zstd"
    needs = ("qemu-img",)
    options = ZSTD_QCOW2

    def full(self):
        fresh(self.store)
        return run("qemu-img", "convert", "-O", "qcow2", *self.options, self.image, self.store,
                   sync=[self.store])

    def restore_raw(self):
        fresh(self.output)
        return run("qemu-img", "convert", "-m", "8", "-W", "-O", "raw", self.store, self.output,
                   sync=[self.output])

    def restore_qcow2(self):
        fresh(self.output)
        return run("qemu-img", "convert", "-m", "8", "-W", "-O", "qcow2", self.store, self.output,
                   sync=[self.output])


class QemuPlain(QemuZstd):
    name = "qemu-img convert"
    options = ("-m", "8", "-W")


class Restic(Peer):
    name = "restic"
    needs = ("restic",)

    def restic(self, *arguments, sync=()):
        env = {"RESTIC_PASSWORD": "bench", "TZ": "UTC",
               "RESTIC_CACHE_DIR": os.path.join(self.place, "cache")}
        return run("restic", "-q", "-r", self.store, *arguments, env=env, sync=sync)

    def version(self):
        return first_line("restic", "version")

    def full(self):
        fresh(self.store, os.path.join(self.place, "cache"))
        self.restic("init")
        return self.increment()

    def increment(self):
        return self.restic("backup", self.image, sync=[self.store])

    def restore(self):
        fresh(self.output)
        return self.restic("restore", "latest", "--target", self.output, sync=[self.output])

    restore_raw = restore

    def verify(self):
        return self.restic("check", "--read-data")


class Borg(Peer):
    name = "borg, zstd,1"
    needs = ("borg",)
    count = 0

    def borg(self, *arguments, sync=(), folder=None):
        env = {"BORG_BASE_DIR": os.path.join(self.place, "base"), "TZ": "UTC",
               "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
               "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
        before = os.getcwd()
        if folder:
            os.makedirs(folder)
            os.chdir(folder)
        try:
            return run("borg", *arguments, env=env, sync=sync)
        finally:
            os.chdir(before)

    def full(self):
        fresh(self.store, os.path.join(self.place, "base"))
        self.borg("init", "-e", "none", self.store)
        return self.increment()

    def increment(self):
        self.count += 1
        return self.borg("create", "-C", "zstd,1", f"{self.store}::{self.count}", self.image,
                         sync=[self.store])

    def restore(self):
        fresh(self.output)
        return self.borg("extract", f"{self.store}::{self.count}", folder=self.output,
                         sync=[self.output])

    restore_raw = restore

    def verify(self):
        return self.borg("check", "--verify-data", self.store)


class Zstd(Peer):
    name = "zstd -1, 1 thread"
    needs = ("zstd",)
    threads = ("-T1",)

    def full(self):
        fresh(self.store)
        return run("zstd", "-q", "-1", *self.threads, self.image, "-o", self.store,
                   sync=[self.store])

    def restore_raw(self):
        fresh(self.output)
        return run("zstd", "-q", "-d", self.store, "-o", self.output, sync=[self.output])

    def verify(self):
        return run("zstd", "-q", "-t", self.store)


class Zstd2(Zstd):
    name = "zstd -1, 2 threads"
    threads = ("-T2",)


class Cp(Peer):
    name = "cp"
    needs = ("cp",)

    def copy(self, source, target):
        fresh(target)
        return run("cp", "--reflink=never", source, target, sync=[target])

    def full(self):
        return self.copy(self.image, self.store)

    def restore_raw(self):
        return self.copy(self.store, self.output)


class Rsync(Peer):
    name = "rsync"
    needs = ("rsync",)

    def rsync(self, *flags):
        return run("rsync", *flags, self.image, self.store, sync=[self.store])

    def full(self):
        fresh(self.store)
        return self.rsync("--whole-file")

    def increment(self):
        return self.rsync("--inplace", "--no-whole-file", "--ignore-times")


class Nbdcopy(Peer):
    name = "nbdcopy"
    needs = ("nbdcopy", "qemu-nbd")

    def full(self):
        fresh(self.store)
        return run("nbdcopy", "--", "[", "qemu-nbd", "-r", "-f", "qcow2", self.image, "]",
                   self.store, sync=[self.store])


PEERS = (Qdelta, Tracked, QemuZstd, QemuPlain, Restic, Borg, Zstd, Zstd2, Cp, Rsync, Nbdcopy)


def report_of(run_):
    """What qdelta's --json says of itself."""
    return json.loads(run_.output)
