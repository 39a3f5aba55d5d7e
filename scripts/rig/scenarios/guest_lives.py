"""Random lives of a guest's disk that QEMU has open at every backup: what kept clones must show."""

import collections
import json
import os
import random

from ..acts import KIB, guest_act
from ..guest import Disk
from ..libvirt import virsh
from ..points import compare
from ..run import Failure, output, run

LIVES = 2
POINTS = 6
DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{disk.format}' cache='{disk.cache}' discard='unmap'/>
      <source file='{disk.path}'/><target dev='vda' bus='virtio'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""
DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"


def guest_lives(rig):
    """A paused guest's disk, of which QEMU holds a part in memory, is what its file says (XFS, Btrfs)."""
    for host in ("xfs", "btrfs"):
        filesystem = rig.filesystem(host, size="3G", name=f"guests-{host}")
        for form in ("qcow2", "raw"):
            total = collections.Counter()
            for number in range(LIVES * rig.effort):
                name = f"{host}-{form}-{number}"
                _Life(rig, name, form, os.path.join(filesystem.mount, name), total).live()
            rig.say(f"{form} on {host}: {total['lives']} lives, {total['points']} points with QEMU "
                    f"running, all as QEMU's tools read the file; {total['acts']} acts, "
                    f"{total['refused acts']} more that were refused")
            for what, count in sorted(total.items()):
                if what.startswith("by ") or ": " in what:
                    rig.say(f"   {count:4} {what}")
            if not total["by reflink"]:
                raise Failure(f"reflink was never used: {total}")
        filesystem.close()


class _Life:
    """One guest: it never runs, so its disk changes only by what it is told."""

    def __init__(self, rig, name, form, folder, total):
        self.rig, self.name, self.folder, self.total = rig, name, folder, total
        self.random = random.Random(name)
        self.story = [f"life {name}"]
        self.repo = os.path.join(folder, "repo")
        self._count = 0
        # The files of the disk at its latest point.
        self._known = None
        os.makedirs(folder)
        rig.qdelta("init", self.repo)
        size = self.random.randrange(4, 20) * 512 * KIB
        self.disk = Disk(os.path.join(folder, f"disk.{form}"), form,
                         self.random.choice(["none", "writeback"]))
        run("qemu-img", "create", "-q", "-f", form, self.disk.path, str(size))
        emulator = self.random.choice(rig.qemu_versions()).program("qemu-system-x86_64")
        definition = os.path.join(folder, "domain.xml")
        with open(definition, "w", encoding="utf-8") as file:
            file.write(DOMAIN.format(name=name, emulator=emulator, disk=self.disk))
        virsh("define", definition)

    def live(self):
        virsh("start", self.name, "--paused")
        try:
            self._write()
            for number in range(POINTS):
                self._backup(number)
                for _ in range(self.random.randrange(0, 4)):
                    self._act()
        except Failure as failure:
            raise Failure("\n".join([*self.story, str(failure)])) from failure
        finally:
            virsh("destroy", self.name, check=False)
            virsh("undefine", self.name, check=False)
        self.total["lives"] += 1

    def _act(self):
        act = self.random.choice([*[self._write] * 8, self._overlay, self._overlay, self._commit,
                                  self._commit, self._pull, self._copy, self._resize, self._killed,
                                  self._defragment])
        done = act()
        refused = done is not None and done.returncode != 0
        self.total["refused acts" if refused else "acts"] += 1
        self.story.append(f"  {act.__name__}{': ' + done.stdout.strip() if refused else ''}")

    def _file(self):
        """The file that QEMU writes to."""
        for line in output("virsh", "-q", "-c", "qemu:///system", "domblklist",
                           self.name).splitlines():
            target, path = line.split(None, 1)
            if target == "vda":
                return path.strip()
        raise Failure(f"{self.name} has no disk")

    def _format(self):
        return self.disk.format if self._file() == self.disk.path else "qcow2"

    def _info(self):
        return json.loads(output("qemu-img", "info", "-U", "--output=json", "-f", self._format(),
                                 self._file()))

    def _files(self):
        """That file, and all below it."""
        chain = json.loads(output("qemu-img", "info", "-U", "--backing-chain", "--output=json", "-f",
                                  self._format(), self._file()))
        return {image["filename"] for image in chain}

    def _new_file(self):
        self._count += 1
        return os.path.join(self.folder, f"top{self._count}.qcow2")

    def _write(self):
        size = self._info()["virtual-size"]
        for _ in range(self.random.randrange(1, 5)):
            act = guest_act(self.random, size)
            virsh("qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {DEVICE} "{act}"')
            self.story.append(f"    {act}")

    def _overlay(self):
        return virsh("snapshot-create-as", self.name, "--disk-only", "--no-metadata", "--diskspec",
                     f"vda,file={self._new_file()}", check=False)

    def _commit(self):
        return virsh("blockcommit", self.name, "vda", "--active", "--pivot", "--wait", check=False)

    def _pull(self):
        return virsh("blockpull", self.name, "vda", "--wait", check=False)

    def _copy(self):
        return virsh("blockcopy", self.name, "vda", "--dest", self._new_file(), "--format", "qcow2",
                     "--transient-job", "--pivot", "--wait", check=False)

    def _resize(self):
        size = self.random.randrange(1, 24) * 512
        return virsh("blockresize", self.name, "vda", f"{size}KiB", check=False)

    def _killed(self):
        """QEMU ends with all that it has in memory, and starts again on what there is."""
        virsh("destroy", self.name)
        virsh("start", self.name, "--paused")

    def _defragment(self):
        for filesystem in self.rig._filesystems:
            if self.folder.startswith(filesystem.mount + "/"):
                moved = filesystem.defragment([self._file()])
                self.total[f"defragmentation: {'moved' if moved else 'left in its place'}"] += 1

    def _backup(self, number):
        if self.random.random() < 0.5:
            virsh("qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {DEVICE} "flush"')
        expected, restored = (os.path.join(self.folder, name) for name in ("expected", "restored"))
        # Nobody writes: the tools see what the clones will hold.
        run("qemu-img", "convert", "-U", "-f", self._format(), "-O", "raw", self._file(), expected)
        command = ["backup", "--domain", self.name, "--repo", self.repo, "--anchor", "reflink",
                   "--sample", "0"]
        command += self._same_guest(command)
        summary = self.rig.qdelta_json(*command)
        report = summary["domains"][0]["result"]
        self.story.append(f"backup {number}: {json.dumps(report)}")
        (disk,) = report["disks"]
        self.total["points"] += 1
        if disk["kind"] != "full":
            self.total[f"by {disk['tracker']}"] += 1
        for refusal in disk["refused"]:
            if refusal["tracker"] == "reflink":
                self.total[f"not by reflink: {refusal['reason'].replace(self.folder, '')}"] += 1
        self.rig.qdelta("restore", f"{self.name}/vda@{report['point']}", restored, "--force",
                        "--format", "raw", "--repo", self.repo)
        compare(restored, expected)

    def _same_guest(self, command):
        """A disk of which no file is one of before is refused until somebody says that it is the same;
        snapshots and merges need nobody's word."""
        files, known = self._files(), self._known
        self._known = files
        if known is None or files & known:
            return []
        done = self.rig.qdelta(*command, check=False)
        if done.returncode != 2 or "--same-guest" not in done.stderr:
            raise Failure(f"status {done.returncode} of a disk in {files}, which was in {known}:\n"
                          f"{done.stdout}{done.stderr}")
        self.story.append("--same-guest")
        self.total["refused until --same-guest: the disk was moved"] += 1
        return ["--same-guest"]
