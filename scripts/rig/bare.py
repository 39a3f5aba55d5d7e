"""A QEMU with one disk and no guest: whoever speaks to its monitor is the guest, and the admin."""

import os
import subprocess

from .monitor import Died, Monitor, Refused
from .run import PATIENCE_SECONDS, Failure, run, wait_for

DEVICE = "/machine/peripheral/disk/virtio-backend"


class Bare:
    """A stopped machine that has an image open as a guest's disk would be."""

    def __init__(self, qemu, folder, image, incoming=None):
        self.qemu = qemu
        self.image = image
        self._jobs, self._completed = 0, None
        monitor = os.path.join(folder, "monitor")
        if os.path.exists(monitor):
            os.remove(monitor)
        command = [
            qemu.program("qemu-system-x86_64"), "-accel", "tcg", "-machine", "pc-i440fx-7.2", "-m", "16",
            "-nodefaults", "-display", "none", "-S", "-qmp", f"unix:{monitor},server=on,wait=off",
            "-blockdev", f"driver=qcow2,node-name=disk,discard=unmap,file.driver=file,"
            f"file.filename={image}", "-device", "virtio-blk-pci,drive=disk,id=disk"]
        if incoming:
            command += ["-incoming", f"unix:{incoming}"]
        self._log = os.path.join(folder, "qemu.log")
        with open(self._log, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log)
        self._monitor = None
        try:
            wait_for(f"the monitor of QEMU {qemu.version}",
                     lambda: self._connects(monitor) or not self.is_alive(), PATIENCE_SECONDS)
        except Failure:
            self.kill()
            raise
        if not self.is_alive():
            raise Refused(f"QEMU {qemu.version} does not start with {image}:\n{self._said()}")

    def _connects(self, path):
        try:
            self._monitor = Monitor(path)
        except (OSError, Died):
            return False
        return True

    def execute(self, order, **arguments):
        """One QMP command; underscores in the names of its arguments are hyphens."""
        try:
            return self._monitor.execute(order, **arguments)
        except Failure as silence:
            self.kill()
            raise Failure(f"{silence}\n{self._said()}") from silence
        except Died as death:
            self.kill()
            raise Died(f"QEMU {self.qemu.version}: {death}\n{self._said()}") from death

    def _said(self):
        return run("tail", "-n", "5", self._log).stdout

    def monitor(self, line):
        """One command of the human monitor, which must have nothing to say."""
        said = self.execute("human-monitor-command", command_line=line).strip()
        if said:
            raise Refused(f"{line}: {said}")

    def write(self, commands):
        """What a guest does to its disk, in the words of qemu-io."""
        for command in commands:
            self.execute("human-monitor-command",
                         command_line=f'qemu-io -d {DEVICE} "{command}"')

    def flush(self):
        self.write(["flush"])

    def top(self):
        """The node that the disk is, as QEMU describes it."""
        (device,) = self.execute("query-block")
        return device["inserted"]

    def chain(self):
        """The files of the disk, the top first."""
        image, files = self.top()["image"], []
        while image:
            files.append(image["filename"])
            image = image.get("backing-image")
        return files

    def bitmaps(self):
        """The names of the bitmaps of the disk's top node."""
        return [bitmap["name"] for bitmap in self.top().get("dirty-bitmaps", [])
                if bitmap.get("name")]

    def job(self, order, begun=lambda: None, **arguments):
        """A block job that runs to its end; one that waits to be completed is completed.

        `begun` is called when QEMU has taken the order, however the job ends.
        """
        self._jobs += 1
        name = f"job{self._jobs}"
        self.execute(order, job_id=name, **arguments)
        begun()
        wait_for(f"{order} to be done", lambda: self._advance(name), PATIENCE_SECONDS, pause=0.005)

    def _advance(self, name):
        jobs = [job for job in self.execute("query-jobs") if job["id"] == name]
        if not jobs:
            return True
        if jobs[0]["status"] == "ready" and name != self._completed:
            self.execute("job-complete", id=name)
            self._completed = name
        if jobs[0]["status"] == "concluded":
            self.execute("job-dismiss", id=name)
            if "error" in jobs[0]:
                raise Refused(f"{name}: {jobs[0]['error']}")
            return True
        return False

    def migrate(self, other, place, bitmaps):
        """The machine goes on in another QEMU over the same files; this one ends."""
        capability = [{"capability": "dirty-bitmaps", "state": bitmaps}]
        for machine in (self, other):
            machine.execute("migrate-set-capabilities", capabilities=capability)
        self.execute("migrate", uri=f"unix:{place}")

        def is_over():
            status = self.execute("query-migrate").get("status")
            if status == "failed":
                raise Refused("the migration failed")
            return status == "completed"

        wait_for("the migration", is_over, PATIENCE_SECONDS)
        wait_for("the other QEMU", lambda: other.execute("query-status")["status"]
                 not in ("inmigrate", "finish-migrate"), PATIENCE_SECONDS)
        # As libvirt does: with this capability left on, savevm never ends where there is a bitmap
        # (seen in QEMU 10.0.2).
        capability[0]["state"] = False
        other.execute("migrate-set-capabilities", capabilities=capability)
        # It takes the files over when it goes on, if not before.
        other.execute("cont")
        other.execute("stop")
        self.quit()

    def quit(self):
        self.execute("quit")
        self._ended()

    def kill(self):
        """Nothing that QEMU has in memory is written back."""
        self._process.kill()
        self._ended()

    def _ended(self):
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as expired:
            self._process.kill()
            raise Failure(f"QEMU {self.qemu.version} does not end") from expired
        finally:
            if self._monitor:
                self._monitor.close()

    def is_alive(self):
        return self._process.poll() is None
