"""The same guest backed up by qdelta and by virtnbdbackup, one after the other: figures side by side."""

import os
import random
import resource
import shutil
import statistics
import subprocess
import time

from ..guest import Disk
from ..libvirt import virsh
from ..points import Chain
from ..run import Failure, run

HERE = os.path.dirname(os.path.abspath(__file__))
COMMANDS = os.path.join(HERE, "..", "..", "snapshot-commands")
ROUNDS = 5
# As a job of `qdelta run` does it, unless its configuration says otherwise.
STANDING_BACK = ["nice", "-n", "10", "ionice", "-c", "2", "-n", "7"]
CHANGE_MIB = 32
# Half of it can't be compressed, half is text.
DATA_MIB = 512
TIMEOUT_SECONDS = 1800


def virtnbdbackup(rig):
    """Full, increment and restore of a running guest beside virtnbdbackup: time, processor, size, the guest's pace."""
    mount = rig.filesystem("ext4", size="12G").mount
    disks = [Disk(os.path.join(mount, "system.qcow2")).make(), _disk_with_data(os.path.join(mount, "data.qcow2"))]
    guest = rig.guest("measured", disks)
    chain = Chain(rig, guest)
    command = ["--snapshot-command", os.path.realpath(os.path.join(COMMANDS, "qemu-bitmap"))]
    figures = {}
    for number in range(ROUNDS * rig.effort):
        # Whoever comes second finds the image in memory: each comes first in its turn.
        # virtnbdbackup trusts QEMU's bitmap; qdelta reads a sample beside it, of one size for every disk.
        peers = [("qdelta", lambda kind: _Qdelta(rig, guest, chain, command, kind)),
                 ("qdelta --sample 0",
                  lambda kind: _Qdelta(rig, guest, chain, [*command, "--sample", "0"], kind)),
                 ("qdelta in a job",
                  lambda kind: _Qdelta(rig, guest, chain, command, kind, STANDING_BACK)),
                 ("virtnbdbackup", lambda kind: _Virtnbdbackup(rig, guest, mount, kind, [])),
                 ("virtnbdbackup -z", lambda kind: _Virtnbdbackup(rig, guest, mount, kind, ["-z"]))]
        turn = number % len(peers)
        for peer, act in peers[turn:] + peers[:turn]:
            for kind in ("full", "incremental", "restore"):
                if kind == "incremental":
                    guest.order("dd if=/dev/urandom of=/mnt/vdb/change bs=1M conv=notrunc "
                                f"count={CHANGE_MIB} 2>/dev/null; sync")
                figures.setdefault((kind, peer), []).append(_measured(guest, act(kind)))
            # virtnbdbackup works for no guest that has a checkpoint of others.
            forget_checkpoints(guest)
            if peer.startswith("virtnbdbackup"):
                shutil.rmtree(_folder(mount, peer.split()[1:]))
    for kind in ("full", "incremental", "restore"):
        for peer, _ in peers:
            rows = figures[kind, peer]
            seconds, processor, pace, gap = ([row[column] for row in rows] for column in range(4))
            # What the guest could have done meanwhile, and did not.
            lost = statistics.median(took * (1 - part) for took, part in zip(seconds, pace))
            rig.say(f"{kind:<12} {peer:<17} {statistics.median(seconds):6.1f} s, "
                    f"processor {statistics.median(processor):6.1f} s, {rows[-1][4]:6.1f} MiB, "
                    f"the guest at {statistics.median(pace):4.0%} of its pace (lost {lost:4.1f} s), "
                    f"longest pause {statistics.median(gap):5.0f} ms")
    point = chain.backup(*command)
    guest.pause()
    rig.say(f"{point.time} is whole up to record {chain.check(point)}")


class _Qdelta:
    """One act of qdelta's."""

    def __init__(self, rig, guest, chain, command, kind, before=()):
        self.place = chain.repo
        self.output = os.path.join(rig.folder, "restored-by-qdelta")
        self.words = [*before, rig.qdelta_program, "--repo", chain.repo, "--quiet"]
        if kind == "restore":
            self.words += ["restore", "--domain", guest.name, "--to", self.output, "--rename", "restored"]
        else:
            self.words += ["backup", "--domain", guest.name, *command, "--freeze-max", "60000"]
            self.words += ["--kind", "full"] if kind == "full" else []
        self.environment = rig.environment()


class _Virtnbdbackup:
    """One act of virtnbdbackup's, or of its program for restoring."""

    def __init__(self, rig, guest, mount, kind, options):
        self.place = _folder(mount, options)
        self.output = os.path.join(rig.folder, "restored-by-virtnbdbackup")
        if kind == "restore":
            self.words = ["virtnbdrestore", "-n", "-i", self.place, "-o", self.output]
        else:
            self.words = ["virtnbdbackup", "-n", "-d", guest.name, "-o", self.place, *options,
                          "-l", {"full": "full", "incremental": "inc"}[kind]]
        self.environment = rig.environment()


def _folder(mount, options):
    return os.path.join(mount, "by-virtnbdbackup" + "".join(options))


def _measured(guest, act):
    """(seconds, processor seconds, the guest's pace, its longest pause in ms, MiB stored) of one act."""
    shutil.rmtree(act.output, ignore_errors=True)
    alone = _pace(guest, 3)
    before, stored = resource.getrusage(resource.RUSAGE_CHILDREN), _mib(act.place)
    since, first, begin = guest.records_size(), guest.newest(), time.monotonic()
    done = subprocess.run(act.words, text=True, stdin=subprocess.DEVNULL, capture_output=True,
                          env=act.environment, timeout=TIMEOUT_SECONDS, check=False)
    seconds = time.monotonic() - begin
    pace = (guest.newest() - first) / seconds
    if done.returncode != 0:
        raise Failure(f"status {done.returncode}: {' '.join(act.words)}\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    guest.wait_for_records(5)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shutil.rmtree(act.output, ignore_errors=True)
    return seconds, processor, pace / alone, guest.longest_gap_ms(since), _mib(act.place) - stored


def _pace(guest, seconds):
    """Records a second while nothing else happens."""
    first = guest.newest()
    time.sleep(seconds)
    return max(guest.newest() - first, 1) / seconds


def _mib(folder):
    return sum(os.lstat(os.path.join(parent, name)).st_blocks * 512
               for parent, _, names in os.walk(folder) for name in names) / (1 << 20)


def forget_checkpoints(guest):
    """libvirt does not undefine a guest that has any."""
    for name in reversed(virsh("checkpoint-list", guest.name, "--name", "--topological").stdout.split()):
        virsh("checkpoint-delete", guest.name, name)


def _disk_with_data(path):
    """An image of 1 GiB, half of it full."""
    rng, folder = random.Random(1), path + ".files"
    os.makedirs(folder)
    for number in range(DATA_MIB // 2):
        with open(os.path.join(folder, f"noise-{number}"), "wb") as file:
            file.write(rng.randbytes(1 << 20))
        with open(os.path.join(folder, f"text-{number}"), "wb") as file:
            file.writelines(b"%d is the number of this line\n" % rng.getrandbits(20) for _ in range(28_000))
    raw = path + ".mkfs"
    run("truncate", "-s", "1G", raw)
    run("mkfs.ext4", "-q", "-F", "-d", folder, raw)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    os.remove(raw)
    shutil.rmtree(folder)
    return Disk(path)
