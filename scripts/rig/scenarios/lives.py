"""Random lives of disks with anchors: what a running QEMU does to them between two points."""

import collections
import json
import os
import random
import shutil

from .. import acts
from ..acts import EndNow, MIB
from ..bare import Bare
from ..monitor import Died, Refused
from ..points import compare
from ..run import Failure, output

# With how few lives all of this is tried once; QDELTA_SWEEP multiplies it.
LIVES = 4
POINTS = 6
# The kinds of anchors that a life's backups leave, and the file system that it is on.
KINDS = [("bitmap", ["bitmap"], "ext4"), ("snapshot", ["snapshot"], "ext4"),
         ("overlay", ["none"], "ext4"), ("reflink on XFS", ["reflink"], "xfs"),
         ("reflink on Btrfs", ["reflink"], "btrfs"),
         ("mixed", ["bitmap", "snapshot", "reflink", "none", "auto"], "xfs")]
# The trackers that must have been used, or a life has proved nothing about them.
PROVED = {"bitmap": ["bitmap"], "snapshot": ["snapshot"], "overlay": ["overlay"],
          "reflink on XFS": ["reflink"], "reflink on Btrfs": ["reflink"]}
# Why a tracker may be refused, and what must have happened since the point before for it.
CAUSES = {
    "is not saved: QEMU is using it, or was killed": {"kill"},
    "does not record every write": {"bitmap disabled"},
    "has no valid bitmap": {"bitmap removed", "chain", "amend"},
    "was cleared": {"bitmap cleared", "shrink"},
    "nothing shows what was allocated": {"map removed", "kill"},
    "the disk was shrunk": {"shrink", "map cleared"},
    "does not have exactly one snapshot": {"snapshot removed", "chain"},
    "is somebody else's": {"snapshot remade"},
    "a backing file has changed": {"chain"},
    "lies over other backing files": {"chain"},
    "does not lie over the image of": {"chain"},
    "a file of the image has changed since": {"opened", "chain"},
    # A clone was read.
    "can't be recognised again": set(),
    "a clone of the image is read": set(),
    "the new anchor has just been written": set(),
    # Behind a mirror, a migration gives the other file the bitmaps of the one before.
    "is another file than": {"replaced", "chain"},
    "proves nothing": {"subvolumes are not told apart"},
    "no clone of": {"chain"},
    "the image had its bytes in": {"chain"},
    "the image is no qcow2": set(),
    "left no anchor for it": set(),
    "left nothing to compare with": set(),
}


def lives(rig):
    """Every point of a disk is what QEMU reads, whatever QEMU did to the anchors (all kinds)."""
    only = os.environ.get("QDELTA_LIFE")
    for kind, kinds, host in KINDS:
        total = collections.Counter()
        filesystem = rig.filesystem(host, name=kind.replace(" ", "-"), size="3G")
        for number in range(LIVES * rig.effort):
            name = only or f"{kind}-{number + int(os.environ.get('QDELTA_FIRST', '0'))}"
            if name.rpartition("-")[0] != kind:
                continue
            folder = os.path.join(filesystem.mount, f"life{number}")
            Life(rig, name, kinds, folder, total).live()
            shutil.rmtree(folder)
            if only:
                break
        filesystem.close()
        if not total:
            continue
        rig.say(f"{kind}: {total['lives']} lives, {total['points']} points, all as QEMU reads them; "
                f"{total['acts']} acts, {total['refused acts']} more that QEMU refused; "
                f"{total['QEMUs that ended by themselves']} QEMUs ended by themselves")
        for what, count in sorted(total.items()):
            if what.startswith(("by ", "not ")):
                rig.say(f"   {count:4} {what}")
        for tracker in PROVED.get(kind, []):
            if not only and not total[f"by {tracker}"]:
                raise Failure(f"{kind}: the tracker was never used: {total}")


def _always(folder):
    """What is a cause at every point, by where the disk lies: Btrfs before Linux 6.10."""
    kernel = [int(part) for part in os.uname().release.split("-")[0].split(".")[:2]]
    kind = output("stat", "-f", "-c", "%T", os.path.dirname(folder)).strip()
    return {"subvolumes are not told apart"} if kind == "btrfs" and kernel < [6, 10] else set()


def _times(path):
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ctime_ns


class Repo:
    """One of the repositories in which a disk has its points."""

    def __init__(self, path):
        self.path = path
        self.points = []
        # What happened to the disk since the last point.
        self.events = set()


class Life:
    """One disk, its repositories, and all that happens."""

    def __init__(self, rig, seed, kinds, folder, total):
        self.rig = rig
        self.folder = folder
        self.total = total
        self.always = _always(folder)
        self.random = random.Random(seed)
        self.qemus = rig.qemu_versions()
        self.story = [f"life {seed} (QDELTA_LIFE={json.dumps(seed)})"]
        self.machine = None
        self.chain_of_copy = None
        self._count = 0
        os.makedirs(folder)
        repos = self.random.choice([1, 1, 2])
        self.repos = [Repo(os.path.join(folder, f"repo{number}")) for number in range(repos)]
        self._kinds = [self.random.choice(kinds) if repos > 1 or self.random.random() < 0.5 else None
                       for _ in self.repos]
        self._all_kinds = kinds
        for repo in self.repos:
            rig.qdelta("init", repo.path)
        self.size = self.random.randrange(4, 20) * MIB // 2 + 512 * self.random.choice([0, 0, 3])
        self.path = os.path.join(folder, "disk.qcow2")
        option = self.random.choice([
            "cluster_size=64k", "cluster_size=64k", "cluster_size=4k", "lazy_refcounts=on",
            "extended_l2=on,cluster_size=16k", "cluster_size=2M", "compat=0.10"])
        self.tool("create", "-q", "-f", "qcow2", "-o", option, self.path, str(self.size))
        self.story.append(f"{option}, {self.size} bytes")

    # What acts use.

    def qemu(self):
        return self.qemus[0]

    def another_qemu(self):
        """For a migration: also to a newer version, and never to an older one."""
        running = self.machine.qemu
        newest = max(self.qemus, key=lambda it: [int(part) for part in it.version.split(".")])
        return self.random.choice([running, newest])

    def name(self, prefix):
        self._count += 1
        return f"{prefix}{self._count}"

    def new_file(self):
        return os.path.join(self.folder, self.name("top") + ".qcow2")

    def tool(self, *arguments, may_fail=False):
        self.happened("opened")
        acts.tool(self.qemu(), *arguments, may_fail=may_fail)

    def info(self):
        return json.loads(output(self.qemu().program("qemu-img"), "info", "--output=json",
                                 self.path))

    def files(self):
        said = json.loads(output(self.qemu().program("qemu-img"), "info", "--output=json",
                                 "--backing-chain", self.path))
        return [image["filename"] for image in said]

    def backing(self):
        return self.info().get("full-backing-filename")

    def happened(self, *events):
        for repo in self.repos:
            repo.events.update(events)

    def resized(self, size):
        if size < self.size:
            self.happened("shrink")
        self.size = size

    def restore_in_place(self, repo, point):
        done = self.rig.qdelta("restore", f"disk@{point}", self.path, "--in-place", "--no-point",
                               "--repo", repo.path, check=False)
        if "resize it first" in done.stderr:
            raise Refused("the disk has another size now")
        if done.returncode != 0:
            raise Failure(f"qdelta restore --in-place: {done.stderr}")

    # What happens.

    def live(self):
        try:
            self._session()
            for number in range(POINTS):
                self._backup(self.random.choice(self.repos), number)
                for _ in range(self.random.choice([0, 1, 1, 2])):
                    self._session()
        except Failure as failure:
            self.story.append("...")
            raise Failure("\n".join([*self.story, str(failure)])) from failure
        finally:
            if self.machine and self.machine.is_alive():
                self.machine.kill()
        self.total["lives"] += 1

    def _session(self):
        """QEMU runs for a while, or tools do something to the image."""
        self.happened("opened")
        if self.random.random() < 0.3:
            self._try(self.random.choice(acts.OFFLINE), self)
            self.size = self.info()["virtual-size"]
            return
        try:
            self.machine = Bare(self.random.choice(self.qemus), self.folder, self.path)
        except Refused as refusal:
            self.story.append(str(refusal))
            raise Failure("QEMU does not start") from refusal
        self.story.append(f"QEMU {self.machine.qemu.version} starts with {self.path}")
        try:
            self._acts()
        except EndNow as end:
            self.story.append(str(end))
        except Died as death:
            self.story.append(str(death))
            self.total["QEMUs that ended by themselves"] += 1
            self.machine.kill()
            self.happened("kill", "opened")
        if not self.machine.is_alive():
            pass
        elif self.random.random() < 0.2:
            if self.random.random() < 0.5:
                self.machine.flush()
            self.machine.kill()
            self.happened("kill", "opened")
            self.story.append("QEMU is killed")
        else:
            self.machine.quit()
            self.story.append("QEMU ends")
        self.size = self.info()["virtual-size"]

    def _acts(self):
        for _ in range(self.random.randrange(1, 6)):
            spoil = self.random.random() < 0.06
            act = self.random.choice(acts.SPOILING if spoil else acts.RUNNING)
            self._try(act, self, self.machine)
            if not self.machine.is_alive():
                return
            self.path = self.machine.chain()[0]
            self.size = self.machine.top()["image"]["virtual-size"]

    def _try(self, act, *arguments):
        try:
            self.story.append("  " + act(*arguments))
            self.total["acts"] += 1
        except Refused as refusal:
            self.story.append(f"  {act.__name__}: refused: {refusal}")
            self.total["refused acts"] += 1
            # It may have done half of what it was to do.
            self.happened("opened")

    def _backup(self, repo, number):
        expected, restored = (os.path.join(self.folder, name) for name in ("expected", "restored"))
        # This opens the image, and leaves it as it is.
        acts.tool(self.qemu(), "convert", "-O", "raw", self.path, expected)
        before = _times(self.path)
        kind = self._kinds[self.repos.index(repo)] or self.random.choice(self._all_kinds)
        what = self.random.choice(["auto", "auto", "incremental", "differential"])
        what = what if repo.points else "auto"
        report = self.rig.qdelta_json("backup", self.path, "--disk", "disk", "--repo", repo.path,
                                      "--anchor", kind, "--sample", "0", "--kind", what)
        self.story.append(f"backup {number} to {os.path.basename(repo.path)}, --anchor {kind} "
                          f"--kind {what}: {json.dumps(report)}")
        repo.points.append(report["point"])
        self.total["points"] += 1
        if report["kind"] != "full":
            self.total[f"by {report['tracker']}"] += 1
            self._are_the_causes(repo, report)
        # Whatever QEMU made of the image, qdelta's own writing left it sound.
        if not self.info().get("dirty-flag"):
            self.qemu().check(self.path, may_leak=True)
        self.rig.qdelta("restore", f"disk@{report['point']}", restored, "--force", "--format", "raw",
                        "--repo", repo.path)
        compare(restored, expected)
        repo.events = set()
        if _times(self.path) != before:
            # By the anchors that qdelta left and removed.
            self.happened("opened")

    def _are_the_causes(self, repo, report):
        for refusal in report["refused"]:
            reason = refusal["reason"]
            for words, events in CAUSES.items():
                if words in reason:
                    happened = repo.events | self.always
                    if events and not events & happened:
                        raise Failure(f"{refusal}, but since the last point there were only "
                                      f"{sorted(happened)}")
                    self.total[f"not by {refusal['tracker']}: {words}"] += 1
                    break
            else:
                raise Failure(f"a reason that nobody foresaw: {refusal}")
