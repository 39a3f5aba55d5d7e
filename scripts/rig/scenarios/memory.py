"""States that a guest has beside the one that its disks show: saved memory, and snapshots inside its images."""

import json
import os
import re

from .. import home
from ..check import check_point
from ..guest import Disk
from ..libvirt import virsh
from ..monitor import Refused
from ..points import Chain, compare, restored_disks
from ..run import Failure, run
from ..standin import TARGETS, StandIn
from .peers import COMMANDS

# A program in the guest that counts in memory: no disk knows how far it has come.
COUNTER = "(n=0; while :; do n=$((n + 1)); echo $n >/run/count.new; mv /run/count.new /run/count; sleep 0.2; done) &"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def memory(rig):
    """A guest with its memory saved is lost with all its files, and resumes where it stood; a snapshot inside its images
    is a point of its own (XFS)."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("asleep", rig.two_disks(xfs.mount, chain=True))
    chain = Chain(rig, guest)
    guest.order(COUNTER)
    guest.wait_for_records(100)
    _internal_snapshot(rig, guest, chain)
    boot, counted = _counter(guest)
    guest.save_memory()
    stood = guest.newest()
    point = chain.backup("--with-memory")
    if not point.result["resumes"]:
        raise Failure(f"a point with the guest's memory does not resume: {point.result}")
    # What comes after the point is lost.
    guest.resume_memory()
    guest.wait_for_records(100)
    guest.kill()
    guest.forget()
    virsh("managedsave-remove", guest.name, check=False)
    for disk in guest.disks:
        os.remove(disk.path)

    target = os.path.join(rig.folder, "restored")
    done = rig.qdelta("restore", "--domain", guest.name, "--repo", chain.repo, "--at", point.time, "--to", target,
                      "--with-memory")
    newest = check_copies(rig, target, point)
    lines = [line.strip().removeprefix("$ ") for line in done.stdout.splitlines()]
    lines = [line for line in lines if line.startswith("virsh ")]
    if [line.split()[1] for line in lines] != ["define", "restore"]:
        raise Failure(f"the lines to define and resume the guest are not there:\n{done.stdout}")
    seen, size = guest.console_size(), guest.records_size()
    for line in lines:
        run("sh", "-c", line, env=rig.environment())
    guest.connect()
    guest.wait_for_records_behind(size)
    first = guest.reports(size)[0][0]
    # What was begun when the memory was saved is on the disk or not, and is reported now.
    if not stood < first <= newest + 1:
        raise Failure(f"the guest had reported {stood}, its disks end with {newest}, and it goes on with {first}")
    boot_now, counted_now = _counter(guest)
    if boot_now != boot or counted_now <= counted:
        raise Failure(f"boot {boot} had counted to {counted}, and boot {boot_now} has to {counted_now}")
    if guest.has_come_up_since(seen):
        raise Failure("the guest has started anew")
    guest.wait_for_records(50)
    rig.say(f"its program had counted to {counted}, and is at {counted_now} in the same boot; records go on with {first}")
    guest.power_off()
    disks = [(disk.path, disk.format) for disk in restored_disks(target)]
    check_point(disks, rig.scratch, guest.newest(), "offline", guest.newest() + 1)


def check_copies(rig, folder, point):
    """The newest record on the disks in a folder, which stay as they are."""
    disks = [(disk.path, disk.format) for disk in restored_disks(folder)]
    return check_point(disks, rig.scratch, point.acknowledged, point.consistency, point.begun)


def _counter(guest):
    """Which boot of the guest it is, and how far its program has counted."""
    seen = guest.console_size()
    guest.order(f"echo rig: boot $(cat {BOOT_ID}) counted $(cat /run/count)")
    boot, counted = re.findall(r"rig: boot (\S+) counted (\d+)", guest.said_since(seen))[-1]
    return boot, int(counted)


def _internal_snapshot(rig, guest, chain):
    """One that libvirt takes of the running guest, with its memory: its disks are those of that moment."""
    safe = guest.newest()
    virsh("snapshot-create-as", guest.name, "before")
    begun = guest.newest() + 1
    guest.wait_for_records(50)
    report = chain.backup("--with-snapshots").result
    (stored,) = {it["point"] for disk in report["disks"] for it in disk["snapshots"]}
    disks = []
    for target in TARGETS:
        path = os.path.join(rig.scratch, f"{target}.qcow2")
        rig.qdelta("restore", f"{guest.name}/{target}@{stored}", path, "--repo", chain.repo)
        disks.append((path, "qcow2"))
    newest = check_point(disks, rig.scratch, safe, "crash-consistent", begun)
    for path, _ in disks:
        os.remove(path)
    rig.say(f"the snapshot's disks are whole up to record {newest}")
    virsh("snapshot-delete", guest.name, "before")


def savevm(rig):
    """Snapshots inside images beside the bitmaps of both commands: a night after a snapshot was taken, and after the
    guest went back to it, is right (ext4)."""
    mount = rig.filesystem("ext4").mount
    emulator = rig.qemu_versions()[0].program("qemu-system-x86_64")
    for command in ("external-snapshot", "qemu-bitmap"):
        disks = [Disk(os.path.join(mount, f"{command}-{target}.qcow2")).make("16M") for target in TARGETS]
        guest = StandIn(command, os.path.join(rig.folder, command), disks, emulator)
        guest.start(paused=True)
        guest.take_over(guest.read(rig.scratch))
        try:
            _Nights(rig, guest, command).pass_by()
        finally:
            guest.forget()


class _Nights:
    """Points of a guest by one command."""

    def __init__(self, rig, guest, command):
        self.rig, self.guest, self.command = rig, guest, command
        self.repo, self.random = os.path.join(rig.folder, f"repo of {command}"), rig.random()
        self.tracker = {"external-snapshot": "bitmap", "qemu-bitmap": "live-bitmap"}[command]
        rig.qdelta("init", self.repo)

    def pass_by(self):
        self.night("scan")
        self.write()
        self.monitor("savevm s1")
        then = [bytes(disk) for disk in self.guest.content]
        self.write()
        # As long as there are bitmaps, QEMU goes back to no snapshot: nothing has happened then.
        if "bitmap" not in self.refusal("loadvm s1"):
            raise Failure("QEMU has gone back to a snapshot beside bitmaps")
        self.night(self.tracker)
        self.write()
        # Beside a snapshot, this command leaves no bitmap: the admin can go back.
        leaves_none = self.command == "external-snapshot"
        if not leaves_none:
            self.remove_bitmaps()
        self.monitor("loadvm s1")
        if [bytes(disk) for disk in self.guest.read(self.rig.scratch)] != then:
            raise Failure("after loadvm the disks are not what they were")
        self.guest.take_over(then)
        # Nothing tells what the way back has changed.
        self.night("scan")
        self.write()
        self.monitor("delvm s1")
        self.night("scan" if leaves_none else self.tracker)
        self.write()
        self.night(self.tracker)
        self.rig.say(f"{self.command}: right beside a snapshot, where QEMU refused to go back, and where it went back")

    def write(self):
        for _ in range(6):
            self.guest.write(self.random)
        self.guest.flush()

    def refusal(self, line):
        """What QEMU's monitor says to a line that it refuses."""
        try:
            self.monitor(line)
        except Refused as refusal:
            return str(refusal)
        return ""

    def monitor(self, line):
        said = self.guest.monitor.line(line).strip()
        if said:
            raise Refused(said)

    def remove_bitmaps(self):
        """As an admin does who wants to go back."""
        for name in virsh("checkpoint-list", self.guest.name, "--name").stdout.split():
            virsh("checkpoint-delete", self.guest.name, name)
        execute = self.guest.monitor.execute
        for node in execute("query-named-block-nodes", flat=True):
            for bitmap in node.get("dirty-bitmaps", []):
                execute("block-dirty-bitmap-remove", node=node["node-name"], name=bitmap["name"])

    def night(self, tracker):
        """A point of both disks by this tracker; the disks that it restores are what the guest has."""
        program = os.path.realpath(os.path.join(COMMANDS, self.command))
        done = self.rig.qdelta("--json", "backup", "--domain", self.guest.name, "--repo", self.repo, "--freeze-max",
                               "60000", "--snapshot-command", program, "--sample", "0")
        report = json.loads(done.stdout)["domains"][0]["result"]
        home.expect_at_home(self.guest, repositories=1, checkpoints=1)
        used = [disk["tracker"] for disk in report["disks"]]
        if used != [tracker] * len(used):
            raise Failure(f"{self.command}: a night by {used}, not by {tracker}: {json.dumps(report)}")
        for target, wanted in zip(TARGETS, self.guest.content):
            path, raw = (os.path.join(self.rig.scratch, f"{target}.{kind}") for kind in ("restored", "wanted"))
            self.rig.qdelta("restore", f"{self.guest.name}/{target}@{report['point']}", path, "--force", "--format",
                            "raw", "--repo", self.repo)
            with open(raw, "wb") as file:
                file.write(wanted)
            compare(path, raw)
