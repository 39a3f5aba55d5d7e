"""Drills: the program that boots a guest from its backup, and how far each guest comes."""

import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

from ..libvirt import virsh
from ..points import Chain
from ..run import PATIENCE_SECONDS, Failure, run

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "drill-boot")
# Long enough for an emulated processor with other work, and waited for in full where something never comes.
SECONDS = 90
CANT = 77
GOOD = "cat /mnt/vda/records/* >/dev/null && echo whole"


def drill(rig):
    """A guest boots from its backup with its check passed, and others fail at the rung where they must."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("drilled", rig.two_disks(xfs.mount), uefi=True)
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    point = chain.backup()
    # Its own name is free, and so is its memory.
    definition = virsh("dumpxml", guest.name, "--inactive").stdout
    guest.kill()
    disks = os.path.join(xfs.mount, "disks")
    os.makedirs(disks)
    for target in ("vda", "vdb"):
        rig.qdelta("restore", "--repo", chain.repo, f"{guest.name}/{target}@{point.time}",
                   os.path.join(disks, f"{target}.raw"))
    digests = run("sh", "-c", f"cksum {disks}/*").stdout
    drills = Drills(rig, definition, guest.nvram, disks)
    drills.expect("a sound guest", "service", 0, "whole", check=GOOD)
    drills.expect("a guest without a check", "agent", 0, "no check is named")
    drills.expect("a kernel that hangs", "none", 1, "rig: hanging", cmdline="rig.hang")
    drills.expect("an agent that never answers", "boot", 1, "agent does not answer", cmdline="rig.mute")
    drills.expect("a check that fails", "agent", 1, "status 3: not well", check="echo not well; exit 3")
    drills.expect("another processor", "none", CANT, "aarch64", change=("x86_64", "aarch64"))
    drills.expect("a host without QEMU", "none", CANT, "not installed", path=rig.folder)
    # Its system comes from elsewhere, and is up.
    drills.expect("a disk that is cut off", "agent", 1, "ended with status", check=GOOD, cut=True)
    if run("sh", "-c", f"cksum {disks}/*").stdout != digests:
        raise Failure("a drill has written to the point")


class Drills:
    """Boots one guest again and again, each time otherwise."""

    def __init__(self, rig, definition, nvram, disks):
        self.rig = rig
        self.definition = definition
        self.nvram = nvram
        self.disks = disks

    def expect(self, what, reached, status, text, cmdline="", check=None, change=None, path=None, cut=False):
        """The drill ends like that, and leaves nothing but a picture and the console."""
        machine, scratch = (os.path.join(self.rig.scratch, name) for name in ("machine", "drill"))
        for folder in (machine, scratch):
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
        definition = ElementTree.fromstring(self.definition)
        definition.find("os/cmdline").text += f" {cmdline}"
        shutil.copy(self.nvram, machine)
        with open(os.path.join(machine, "domain.xml"), "w", encoding="utf-8") as file:
            written = ElementTree.tostring(definition, encoding="unicode")
            file.write(written.replace(*change) if change else written)
        environment = dict(os.environ, QDELTA_DOMAIN="drilled", QDELTA_SCRATCH=scratch,
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
