"""Recovery points of a guest, as the rig makes, restores and checks them with qdelta."""

import os
import shutil
import xml.etree.ElementTree as ElementTree

from .check import check_point
from .guest import Disk
from .libvirt import virsh
from .run import Failure, run


# How long a guest may be frozen where the proof is not about that: on a machine with other work a
# freeze that qdelta would rightly give up proves nothing.
FREEZE_MAX = ["--freeze-max", "60000"]


class Point:
    """A recovery point, and what the guest had done when it was made."""

    def __init__(self, result, acknowledged, begun, gap_ms):
        self.result = result
        self.acknowledged = acknowledged
        self.begun = begun
        self.gap_ms = gap_ms
        self.time = result["point"]
        self.consistency = result["consistency"]
        # Nothing where nothing was frozen.
        self.freeze_ms = result["freeze_ms"]

    def stood_still(self):
        """How long the guest did, in words."""
        if self.gap_ms is None:
            return "the guest did not run"
        return f"the guest stood still for {self.gap_ms:.0f} ms"


class Chain:
    """The repository of a guest, with every point that was made."""

    def __init__(self, rig, guest, name="repo"):
        self.rig = rig
        self.guest = guest
        self.repo = os.path.join(rig.folder, name)
        self.points = []
        rig.qdelta("init", self.repo)

    def backup(self, *flags, **options):
        """A point of the guest as it is now: running, paused or stopped."""
        if "--freeze-max" not in flags:
            flags = [*flags, *FREEZE_MAX]
        acknowledged, since = self.guest.newest(), self.guest.records_size()
        summary = self.rig.qdelta_json("backup", "--domain", self.guest.name, "--repo", self.repo,
                                       *flags, **options)
        report = summary["domains"][0]["result"]
        begun = self.guest.newest() + 1
        # The freeze ends, as the guest sees it, with the first record after it.
        self.guest.wait_if_running()
        gap_ms = self.guest.longest_gap_ms_or_none(since)
        point = Point(report, acknowledged, begun, gap_ms)
        self.points.append(point)
        return point

    def refused(self, *flags, words=(), **options):
        """A backup that must fail, and say why; gives what it said."""
        done = self.rig.qdelta("backup", "--domain", self.guest.name, "--repo", self.repo, *flags,
                               check=False, **options)
        said = done.stdout + done.stderr
        if done.returncode == 0:
            raise Failure(f"qdelta backup {' '.join(flags)} was to be refused, and was not:\n{said}")
        for word in words:
            if word not in said:
                raise Failure(f"the refusal does not say '{word}':\n{said}")
        return said

    def restore(self, point, name, folder):
        """Restores the whole machine under another name; gives its disks."""
        self.rig.qdelta("restore", "--domain", self.guest.name, "--repo", self.repo,
                        "--at", point.time, "--to", folder, "--rename", name)
        machine, original = ElementTree.parse(domain_xml(folder)), ElementTree.fromstring(
            virsh("dumpxml", self.guest.name).stdout)
        for what in ("name", "uuid"):
            if machine.findtext(what) == original.findtext(what):
                raise Failure(f"the machine was renamed, and its {what} is that of the other")
        for interface in machine.iterfind("devices/interface/mac"):
            if interface.get("address") == original.find("devices/interface/mac").get("address"):
                raise Failure("the renamed machine has the MAC address of the other")
        return restored_disks(folder)

    def check(self, point, boot=False):
        """Restores a point and checks all that can be checked of it."""
        name = f"{self.guest.name}-restored"
        folder = os.path.join(self.rig.folder, "restored", name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        disks = self.restore(point, name, folder)
        newest = check_point([(disk.path, disk.format) for disk in disks], self.rig.scratch,
                             point.acknowledged, point.consistency, point.begun)
        if boot:
            self.boot(name, folder, disks, newest, point)
        shutil.rmtree(folder)
        return newest

    def boot(self, name, folder, disks, newest, point):
        """The restored machine is defined and started as it is; its workload goes on."""
        xml = domain_xml(folder)
        booted = self.rig.adopt(name, disks, os.path.join(folder, "rig"))
        booted.redirect(xml, self.guest.folder)
        virsh("define", xml)
        booted.start()
        first = booted.reports()[0][0]
        # A record that was begun, and not acknowledged, may be there or not.
        if first != newest + 1 and point.consistency == "filesystem-quiesced":
            raise Failure(f"the restored guest goes on with record {first}, not with {newest + 1}")
        booted.forget()


def domain_xml(folder):
    """The definition that a restore leaves in its folder."""
    # Beside saved memory stands its own.
    found = [name for name in os.listdir(folder) if name.endswith(".xml") and not name.endswith(".save.xml")]
    if len(found) != 1:
        raise Failure(f"{len(found)} definitions of a domain are in {folder}: {found}")
    return os.path.join(folder, found[0])


def restored_disks(folder):
    tree = ElementTree.parse(domain_xml(folder))
    disks = []
    for disk in tree.iterfind("devices/disk"):
        path, form = disk.find("source").get("file"), disk.find("driver").get("type")
        if os.path.commonpath([path, folder]) != folder:
            raise Failure(f"the restored definition still names the disk {path}")
        disks.append(Disk(path, form))
    return disks


def compare(path, other):
    """Two raw files hold the same bytes; holes and zeros are the same."""
    done = run("cmp", path, other, check=False)
    if done.returncode != 0:
        raise Failure(f"{path} is not what it must be: {done.stdout.strip()}")
