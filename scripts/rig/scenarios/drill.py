"""Drills: the program that boots a guest from its backup, and how far each guest comes."""

import json
import os
import shutil
import subprocess

from ..guest import Disk
from ..libvirt import virsh
from ..points import Chain
from ..run import PATIENCE_SECONDS, Failure, output, run

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "drill-boot")
# Long enough for an emulated processor with other work.
SECONDS = 90
# How much longer than a sound guest took one may take that never answers, and the least for it, in seconds.
NEVER = 2
NEVER_MIN = 20
CANT = 77
# What qdelta drill ends with: a guest did not come so far; or nobody knows, for it was still at work.
DRILL_FAILED = 14
NOT_TRIED = 15
GOOD = "cat /mnt/vda/records/* >/dev/null && echo whole"


def drill(rig):
    """A guest comes up from its backup and passes its check; others fail at the rung at which they must."""
    xfs = rig.filesystem("xfs")
    system, data = (os.path.join(xfs.mount, name) for name in ("system.qcow2", "data.raw"))
    guest = rig.guest("drilled", [Disk(system).make(), Disk(data, "raw").make()], uefi=True)
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    sound = chain.backup()
    took = climbs(rig, chain, "a sound guest", "service", 0, "whole", check=GOOD)
    # What never comes is waited for in full: by the pace of this host, and not by that of the slowest.
    never = min(SECONDS, max(NEVER_MIN, round(NEVER * took)))
    climbs(rig, chain, "a check that fails", "agent", DRILL_FAILED, "status 3: not well",
           check="echo not well; exit 3")
    guest.say_to_kernel("rig.hang")
    chain.backup()
    climbs(rig, chain, "a kernel that hangs", "check", DRILL_FAILED, "rig: hanging", seconds=never)
    guest.say_to_kernel("rig.mute")
    chain.backup()
    climbs(rig, chain, "an agent that never answers", "boot", DRILL_FAILED, "agent does not answer",
           seconds=never)

    # Below, nothing is booted: what is broken shows before.
    guest.power_off()
    with open(data, "r+b") as file:
        file.seek(512)
        file.write(b"EFI PART" + bytes(range(200)))
    chain.backup()
    climbs(rig, chain, "a broken partition table", "bytes", DRILL_FAILED, "vdb")
    with open(data, "r+b") as file:
        file.seek(512)
        file.write(bytes(208))
    run("debugfs", "-w", "-R", "clri <2>", data)
    chain.backup()
    climbs(rig, chain, "a broken filesystem", "filesystems", DRILL_FAILED, "e2fsck")
    with open(data, "r+b") as file:
        # The number of blocks and what follows it: what says that there is an ext4 stays.
        file.seek(1024 + 4)
        file.write(os.urandom(16))
    chain.backup()
    climbs(rig, chain, "a broken superblock", "partitions", DRILL_FAILED, "vdb")
    flip(chain, sound)
    climbs(rig, chain, "a flipped byte", None, DRILL_FAILED, "")


def climbs(rig, chain, what, reached, status, text, check="true", seconds=SECONDS):
    """A drill of the latest point comes to that rung, and leaves nothing that runs or is mounted. Gives how
    long it took, in seconds."""
    state = os.path.join(rig.folder, "state")
    done = rig.qdelta("--json", "--state", state, "drill", chain.guest.name, "--repo", chain.repo,
                      "--boot-command", PROGRAM, "--to", "service", "--time-limit", f"{seconds}s",
                      check=False, env={"DRILL_CHECK": check})
    said = f"{what}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    if done.returncode == NOT_TRIED != status and seconds < SECONDS:
        # The host has become slower since the sound guest came up.
        rig.say(f"{what}: still at work after {seconds} s, once more with {SECONDS} s")
        return climbs(rig, chain, what, reached, status, text, check)
    if not done.stdout:
        raise Failure(said)
    drilled = json.loads(done.stdout)["guests"][0]["drill"]
    steps = drilled["steps"]
    texts = " ".join(step["text"] for step in steps if step["result"] == "failed") or steps[-1]["text"]
    if (drilled["reached"], done.returncode) != (reached, status) or text not in texts:
        raise Failure(f"not {reached} with {status}: {said}")
    climbed = {"boot", "agent", "service"} & {step["rung"] for step in steps if step["result"] == "passed"}
    if climbed and not drilled["screenshot"]:
        raise Failure(f"there is no picture: {said}")
    left = run("pgrep", "-a", "-f", "drill-boot", check=False).stdout + output("grep", "-c", "fuse.qdelta",
                                                                             "/proc/mounts", check=False)
    if left.strip() != "0":
        raise Failure(f"{what} leaves {left}")
    rig.say(f"{what}: {drilled['reached']} in {drilled['seconds']:.1f} s: {texts}")
    return drilled["seconds"]


def flip(chain, point):
    """Flips a bit in the middle of an archive of a point."""
    folder = os.path.join(chain.repo, chain.guest.name)
    archives = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names
                if name.endswith(".qdelta") and point.time in name]
    if not archives:
        raise Failure(f"{folder} has no archive of {point.time}")
    with open(max(archives, key=os.path.getsize), "r+b") as file:
        file.seek(os.fstat(file.fileno()).st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def boots(rig):
    """The boot command says what it can't, writes to no disk, and leaves nothing but a picture and a log."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("booted", rig.two_disks(xfs.mount))
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    point = chain.backup()
    definition = virsh("dumpxml", guest.name, "--inactive").stdout
    guest.kill()
    disks = os.path.join(xfs.mount, "disks")
    os.makedirs(disks)
    for target in ("vda", "vdb"):
        rig.qdelta("restore", "--repo", chain.repo, f"{guest.name}/{target}@{point.time}",
                   os.path.join(disks, f"{target}.raw"))
    digests = run("sh", "-c", f"cksum {disks}/*").stdout
    drills = Drills(rig, definition, disks)
    drills.expect("a guest without a check", "agent", 0, "no check is named")
    # Its system comes from elsewhere, and is up.
    drills.expect("a disk that is cut off", "agent", 1, "ended with status", check=GOOD, cut=True)
    drills.expect("another processor", "none", CANT, "aarch64", change=("x86_64", "aarch64"))
    drills.expect("a host without QEMU", "none", CANT, "not installed", path=rig.folder)
    if run("sh", "-c", f"cksum {disks}/*").stdout != digests:
        raise Failure("a drill has written to the point")


class Drills:
    """Boots one guest again and again, each time otherwise."""

    def __init__(self, rig, definition, disks):
        self.rig = rig
        self.definition = definition
        self.disks = disks

    def expect(self, what, reached, status, text, check=None, change=None, path=None, cut=False):
        """The drill ends like that, and leaves nothing but a picture and the console."""
        machine, scratch = (os.path.join(self.rig.scratch, name) for name in ("machine", "drill"))
        for folder in (machine, scratch):
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
        with open(os.path.join(machine, "domain.xml"), "w", encoding="utf-8") as file:
            file.write(self.definition.replace(*change) if change else self.definition)
        environment = dict(os.environ, QDELTA_DOMAIN="booted", QDELTA_SCRATCH=scratch,
                           QDELTA_MACHINE=machine, QDELTA_SECONDS=str(SECONDS))
        environment |= {"DRILL_CHECK": check} if check else {}
        environment |= {"PATH": path} if path else {}
        words = [f"{target}={self._disk(target, cut)}" for target in ("vda", "vdb")]
        done = subprocess.run([shutil.which("python3"), PROGRAM, "boot", *words], text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, env=environment, timeout=PATIENCE_SECONDS, check=False)
        lines = done.stdout.splitlines()
        answer = json.loads(lines[-1]) if lines else {}
        said = f"{what}: status {done.returncode}, {answer}\n{done.stderr}"
        if (answer.get("reached"), done.returncode) != (reached, status) or text not in answer["text"]:
            raise Failure(f"not {reached} with {status}, {text!r}: {said}")
        left = set(os.listdir(scratch)) - {"screen.png", "console.log"}
        running = run("pgrep", "-a", "qemu-system", check=False).stdout
        if left or running:
            raise Failure(f"{what} leaves {left} {running}")
        if status != CANT and not self._is_picture(answer.get("screenshot")):
            raise Failure(f"there is no picture: {said}")
        self.rig.say(f"{what}: {answer['reached']}, {answer['seconds']}: {answer['text']}")

    def _disk(self, target, cut):
        whole = os.path.join(self.disks, f"{target}.raw")
        if not cut:
            return whole
        part = os.path.join(self.rig.scratch, f"{target}.part")
        run("cp", "--reflink=auto", whole, part)
        os.truncate(part, 1 << 20)
        return part

    @staticmethod
    def _is_picture(path):
        if not path:
            return False
        with open(path, "rb") as file:
            return file.read(8) == b"\x89PNG\r\n\x1a\n"
