"""Random lives of a guest whose points are made by the snapshot commands of libvirt's, with kills at any moment."""

import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

from .. import home
from ..guest import Disk
from ..monitor import Died, Refused
from ..run import PATIENCE_SECONDS, Failure, run, wait_for
from ..standin import MIB, TARGETS, StandIn, Writer
from . import command_acts as acts
from .overlays import VICTIMS, command_under
from .peers import COMMANDS

LIVES = 1
ROUNDS = 6
HOSTS = ["ext4", "xfs", "btrfs"]
# How much later than the first sign of a backup in the guest a kill may come, in parts of a whole backup.
LATE = 0.6
# Why the bitmap of a point may not be used though nothing has happened since: the point had none, or was made by the
# other command, or the guest was stopped then or is now (docs/snapshot-commands.md).
ALWAYS = ["the last time", "left no anchor", "left nothing to compare with", "no bitmap began", "read from its file"]
# What is said of a job that libvirt has not begun, and believes that it has (docs/snapshot-commands.md).
HELD = "that was never begun"


def command_lives(rig):
    """Points by both commands are of one moment, whatever befalls the guest; after kills it is at home again."""
    hosts = os.environ.get("QDELTA_FILESYSTEM")
    only = os.environ.get("QDELTA_LIFE")
    for host in [hosts] if hosts else HOSTS:
        filesystem, total = rig.filesystem(host, size="3G", name=f"lives-{host}"), collections.Counter()
        for number in range(LIVES * rig.effort):
            name = f"{host}-{number + int(os.environ.get('QDELTA_FIRST', '0'))}"
            if only in (None, name):
                folder = os.path.join(filesystem.mount, name)
                _Life(rig, name, folder, total).live()
                shutil.rmtree(folder)
            if (number + 1) % 10 == 0:
                rig.say(f"{host}, by now: " + described(total))
        if total:
            rig.say(f"{host}: {described(total)}")
        filesystem.close()


def described(total):
    return ", ".join(f"{count} {what}" for what, count in sorted(total.items()))


class _Life:
    """One guest, its repositories, and what happens to it."""

    def __init__(self, rig, name, folder, total):
        self.rig, self.folder, self.total = rig, folder, total
        self.random = random.Random(name)
        self.images = os.path.join(folder, "its images")
        self.scratch = os.path.join(folder, "scratch")
        for place in (self.images, self.scratch):
            os.makedirs(place)
        self.story = [f"life {name} (QDELTA_LIFE={name})"]
        self._count = 0
        self.repos = [Repo(rig, os.path.join(folder, f"repo{number}"))
                      for number in range(self.random.choice([1, 1, 2]))]
        commands = self.random.choice([["external-snapshot"], ["qemu-bitmap"], ["external-snapshot", "qemu-bitmap"]])
        self.commands = [os.path.realpath(os.path.join(COMMANDS, command)) for command in commands]
        # A folder for many guests, or the place beside each image.
        shared = os.path.join(self.images, "of all guests")
        os.makedirs(shared)
        names = ("QDELTA_OVERLAYS", "QDELTA_SCRATCH") if self.random.random() < 0.3 else ()
        self.environment = rig.environment(**{name: shared for name in names})
        self.story.append(f"elsewhere: {names}")
        self.is_unknown = False
        # How long a backup takes, undisturbed.
        self.whole = 2.0
        emulator = rig.qemu_versions()[0].program("qemu-system-x86_64")
        self.guest = StandIn(name, os.path.join(folder, "guest"), self._disks(), emulator)
        self.has_raw = any(disk.format == "raw" for disk in self.guest.disks)

    def _disks(self):
        disks = []
        for index, target in enumerate(TARGETS[:self.random.choice([1, 2, 2])]):
            form = self.random.choice(["qcow2", "qcow2", "raw"]) if index else "qcow2"
            size = self.random.randrange(4, 16) * MIB // 2 + 512 * self.random.choice([0, 0, 3])
            disk = Disk(os.path.join(self.images, f"{target}, a disk.{form}"), form)
            options = []
            if form == "qcow2":
                options = ["-o", self.random.choice(["cluster_size=64k", "cluster_size=64k", "cluster_size=4k",
                                                     "extended_l2=on,cluster_size=16k", "cluster_size=2M",
                                                     "lazy_refcounts=on"])]
                if self.random.random() < 0.4:
                    base = os.path.join(self.images, f"{target}-base.qcow2")
                    run("qemu-img", "create", "-q", "-f", "qcow2", base, str(size))
                    run("qemu-io", "-c", f"write -q -P 7 0 {size // 2}", base)
                    options += ["-b", base, "-F", "qcow2"]
            run("qemu-img", "create", "-q", "-f", form, *options, disk.path, str(size))
            self.story.append(f"{target}: {form}, {size} bytes, {options}")
            disks.append(disk)
        return disks

    def name(self, prefix):
        self._count += 1
        return f"{prefix}{self._count}"

    def happened(self, *events):
        for repo in self.repos:
            repo.events.update(events)

    def live(self):
        try:
            self.guest.start(self.random.random() < 0.5)
            self.settle()
            for _ in range(ROUNDS):
                for _ in range(self.random.choice([0, 1, 1, 2, 3])):
                    self._act()
                    self.settle()
                repo = self.random.choice(self.repos)
                if self.random.random() < 0.5:
                    self._killed(repo)
                elif self.random.random() < 0.2:
                    self._unknown()
                self._backup(repo)
            self._forged()
        except (Failure, Died, Refused) as failure:
            if isinstance(failure, Died) and self.is_unknown:
                # What was on the overlay only this QEMU could bring home: nobody can.
                self.total["QEMUs that ended on an overlay of which libvirt did not know"] += 1
                return
            raise Failure("\n".join([*self.story[-60:], str(failure)])) from failure
        finally:
            self.guest.forget()
            self.rig.libvirt.start()
        self.total["lives"] += 1

    def _act(self):
        on = self.guest.is_on()
        act = self.random.choice(acts.RUNNING if on else acts.STOPPED)
        try:
            self.story.append("  " + act(self))
            self.total["acts"] += 1
        except Refused as refusal:
            self.story.append(f"  {act.__name__}: refused: {refusal}")
            self.total["refused acts"] += 1
        except Died as death:
            self.story.append(f"  {act.__name__}: {death}")
            self.total["QEMUs that ended by themselves"] += 1
            self.happened("kill")
            acts.wait_off(self)

    def settle(self, when=None):
        """What is on the disks now counts, and is safe; `when` it was to be what is known, it must be so."""
        if self.guest.is_on():
            if self.guest.monitor is None:
                self.guest.connect()
            self.flush_all()
        found = self.guest.read(self.scratch)
        if when:
            self.guest.expect(found, when)
        self.guest.take_over(found)

    def flush_all(self):
        for index in range(len(self.guest.disks)):
            self.guest.qemu_io(index, "flush")

    # Backups.

    def _flags(self, repo, command=None, sample=("--sample", "0")):
        if command is None:
            command = self.commands[0] if self.is_unknown else self.random.choice(self.commands)
        self.is_unknown = False
        state = self.guest.status()
        flags = ["--domain", self.guest.name, "--repo", repo.path, "--snapshot-command", command,
                 "--freeze-max", "60000", *sample]
        if state == "running":
            flags += ["--consistency", "crash"]
        return os.path.basename(command), flags

    def _begin(self, flags):
        return subprocess.Popen([self.rig.qdelta_program, "--json", "backup", *flags], text=True,
                                env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)

    def _writer(self):
        if not self.guest.is_on():
            return None
        for _ in range(self.random.choice([0, 0, 1, 5])):
            self.guest.write(self.random)
        writer = Writer(self.guest, self.random)
        writer.start()
        return writer

    def _backup(self, repo, *how, **more):
        command, flags = self._flags(repo, *how, **more)
        writer, begin = self._writer(), time.monotonic()
        process = self._begin(flags)
        said, complained = process.communicate(timeout=2 * PATIENCE_SECONDS)
        if process.returncode == 2 and "--same-guest" in complained and "chain" in repo.events:
            # None of its files is one of before.
            self.total["refused until --same-guest: the disk was moved"] += 1
            process = self._begin([*flags, "--same-guest"])
            said, complained = process.communicate(timeout=2 * PATIENCE_SECONDS)
        if writer:
            writer.stop()
            self.story.append(f"{len(writer.writes)} writes meanwhile, cut off: {writer.cut_off}")
        if process.returncode == 10 and HELD in complained:
            self.total["jobs that a killed libvirtd held"] += 1
            self.rig.libvirt.forget_job(self.guest.name)
            return self._backup(repo, *how, **more)
        if process.returncode != 0:
            raise Failure(f"status {process.returncode} of a backup by {command}:\n{said}{complained}")
        self.whole = max(0.5, min(self.whole, time.monotonic() - begin))
        report = json.loads(said)["domains"][0]["result"]
        self.story.append(f"by {command} into {os.path.basename(repo.path)}: {json.dumps(report)}")
        home.expect_at_home(self.guest, len(self.repos), len(self.repos) * (len(self.commands) > 1 or
                                                                            command == "qemu-bitmap"))
        self._count_trackers(repo, report)
        self._check(repo, report, writer)
        self.settle("after the backup")
        repo.events.clear()
        repo.latest = report["point"]
        return report

    def _count_trackers(self, repo, report):
        for disk in report["disks"]:
            self.total["points"] += 1
            if disk["kind"] == "full":
                continue
            self.total[f"by {disk['tracker']}"] += 1
            for refusal in disk["refused"]:
                self._is_a_cause(repo, refusal)

    def _is_a_cause(self, repo, refusal):
        if refusal["tracker"] not in ("bitmap", "live-bitmap") or any(it in refusal["reason"] for it in ALWAYS):
            return
        if not repo.events:
            raise Failure(f"{refusal}, but since the last point nothing has happened to the bitmap")
        # Names of points and bitmaps are of no interest.
        reason = re.sub(r"\S*qdelta-\S+|\S*/\S+", "…", refusal["reason"]).split(":")[0]
        self.total[f"not by {refusal['tracker']}: {reason}"] += 1

    def _check(self, repo, report, writer):
        """The restored disks are of one moment between two writes."""
        found = []
        for target in TARGETS[:len(self.guest.disks)]:
            path = os.path.join(self.scratch, f"{target}.restored")
            self.rig.qdelta("restore", f"{self.guest.name}/{target}@{report['point']}", path, "--force",
                            "--format", "raw", "--repo", repo.path)
            with open(path, "rb") as file:
                found.append(file.read())
            os.remove(path)
        if writer:
            writer.moment_of(found)
        elif [bytes(disk) for disk in self.guest.content] != found:
            # Of a guest that was killed, what was never flushed may be there or not.
            self.guest.expect(found, "the point of a stopped guest")

    def _killed(self, repo):
        """A backup, in which one of those who take part is killed at a random moment."""
        victims = [victim for victim in VICTIMS if victim != "QEMU" or self.guest.is_on()]
        victim = self.random.choice(victims)
        command, flags = self._flags(repo)
        # One that is refused would have no moment.
        writer, process = self._writer(), self._begin([*flags, "--same-guest"])
        among = self.random.random() < 0.7 and writer
        if among:
            wait_for("the moment", lambda: home.is_begun(self.guest) or process.poll() is not None,
                     PATIENCE_SECONDS, pause=0.005)
        time.sleep(self.random.uniform(0, self.whole * (LATE if among else 1)))
        met = self._kill(process, victim)
        said = "".join(process.communicate(timeout=2 * PATIENCE_SECONDS))
        if writer:
            writer.stop()
        if victim == "QEMU":
            # It may take a moment to go.
            self.guest.disconnect()
        self.rig.libvirt.start()
        states = ("running", "paused") if self.guest.is_on() else ("shut off",)
        wait_for(f"libvirtd to know {self.guest.name}", lambda: self.guest.state() in states, PATIENCE_SECONDS,
                 pause=0.05)
        self.total[f"kills of {victim}" if met else "kills too late"] += 1
        away = home.is_away(self.guest) or bool(home.job_of(self.guest))
        self.total["kills that left an overlay or a job"] += away
        self.story.append(f"{victim} was killed in a backup by {command}, met: {bool(met)}, away: {away}, "
                          f"status {process.returncode}: {said.strip()[-1500:]}")
        if process.returncode == 0:
            repo.events.clear()
            if away:
                raise Failure("a backup that went well left the guest on an overlay or with a job")
        self.happened("kill" if victim == "QEMU" and met else "cut off")
        self._go_on()

    def _unknown(self):
        """QEMU has made the moment of a backup, and libvirt, which ended just then, does not know of it."""
        if not self.guest.is_on() or not self.commands[0].endswith("external-snapshot"):
            return
        device = self.guest.device(self.random.randrange(len(self.guest.disks)))
        (top,) = [it["inserted"] for it in self.guest.monitor.execute("query-block") if it["qdev"] == device]
        path = f"{top['file']}.qdelta-20260101T000000.000Z-0123abcd"
        self.guest.monitor.execute("blockdev-snapshot-sync", node_name=top["node-name"], snapshot_file=path,
                                   format="qcow2", snapshot_node_name=self.name("unknown"))
        # The other command would take it for an image.
        self.is_unknown = True
        self.story.append(f"QEMU is on {path}, and libvirt does not know of it")
        self.total["overlays of which libvirt did not know"] += 1
        for _ in range(self.random.randrange(5)):
            self.guest.write(self.random)

    def _forged(self):
        """Somebody takes out of a bitmap what the guest has written, and leaves the marks: the sample finds it."""
        command = self.commands[-1]
        if not self.guest.is_on() or not command.endswith("qemu-bitmap"):
            return
        repo = self.repos[0]
        self._backup(repo, command)
        nodes = self.guest.monitor.execute("query-named-block-nodes", flat=True)
        # The last 2 MiB of a disk are always read.
        large = [path for path, disk in zip(self.guest.files().values(), self.guest.content) if len(disk) >= 4 * MIB]
        found = [(node["node-name"], bitmap["name"]) for node in nodes for bitmap in node.get("dirty-bitmaps", [])
                 if bitmap["name"].startswith(f"qdelta-{repo.latest}") and node["file"] in large]
        if not found:
            # No disk has one: they are small or raw, or lie over others.
            return
        execute = self.guest.monitor.execute
        for node, name in found:
            execute("block-dirty-bitmap-add", node=node, name="marks alone")
            execute("block-dirty-bitmap-merge", node=node, target="marks alone", bitmaps=[name])
        for index, disk in enumerate(self.guest.content):
            self.guest.qemu_io(index, f"write -q -P {(disk[0] + 1) % 256} 0 1M")
        self.settle()
        for node, name in found:
            execute("block-dirty-bitmap-clear", node=node, name=name)
            execute("block-dirty-bitmap-merge", node=node, target=name, bitmaps=["marks alone"])
            execute("block-dirty-bitmap-remove", node=node, name="marks alone")
        self.story.append("what was written is taken out of the bitmaps")
        report = self._backup(repo, command, sample=[])
        wrong = [refusal["reason"] for disk in report["disks"] for refusal in disk["refused"]
                 if "its claim is wrong" in refusal["reason"]]
        # What had changed since the bitmap began is claimed without it. That the point is right, the backup has shown.
        found = "planted misses that the sample found" if wrong else "planted misses that were claimed all the same"
        self.total[found] += max(1, len(wrong))

    def _kill(self, process, victim):
        try:
            if victim == "qdelta":
                process.kill()
                return process.wait() == -signal.SIGKILL
            if victim == "libvirtd":
                self.rig.libvirt.kill()
                return process.poll() is None
            if victim == "QEMU":
                was_there = process.poll() is None
                self.guest.kill_qemu()
                return was_there
            pid = wait_for("a call of the command",
                           lambda: command_under(process.pid) or -(process.poll() is not None),
                           PATIENCE_SECONDS, pause=0.005)
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
            return pid > 0
        except ProcessLookupError:
            return False

    def _go_on(self):
        """The guest goes on writing, or is started again, or not: on whatever it is now."""
        if not self.guest.is_on():
            self.guest.disconnect()
            # The image below may have got ahead of an overlay that is being left: its note says so.
            pivots = [name for name in os.listdir(self.images) if name.endswith(".pivot")]
            if not pivots and self.random.random() < 0.6:
                self.guest.start(self.random.random() < 0.5)
        if self.guest.is_on():
            self.settle("after the kill")
            for _ in range(self.random.randrange(4)):
                self.guest.write(self.random)


class Repo:
    """One of the repositories in which the guest has its points."""

    def __init__(self, rig, path):
        self.path = path
        # What happened since its last point.
        self.events, self.latest = set(), None
        rig.qdelta("init", path)
