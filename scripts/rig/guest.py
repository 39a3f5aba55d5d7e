"""One guest of the rig: its domain, its agent, and what its workload reports."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import quoteattr as escaped

from .libvirt import virsh
from .run import PATIENCE_SECONDS, Failure, output, run, wait_for

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
{firmware}    <kernel>{image.kernel}</kernel>
    <initrd>{image.initramfs}</initrd>
    <cmdline>console=ttyS0 quiet edd=off no_timer_check panic=-1 {cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
{disks}
    <interface type='user'><mac address='{mac}'/><model type='virtio'/><rom enabled='no'/></interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
{ports}    <memballoon model='none'/>
  </devices>
</domain>
"""
# What leads to files and sockets of this host: two guests can't have the same.
PORTS = """    <serial type='file'><source path='{folder}/console' append='on'/></serial>
    <console type='file'><source path='{folder}/console' append='on'/></console>
    <channel type='file'>
      <source path='{folder}/records' append='on'/><target type='virtio' name='rig.records'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='{folder}/control'/><target type='virtio' name='rig.control'/>
    </channel>
"""
DISK = """    <disk type='file' device='disk'>
      <driver name='qemu' type='{disk.format}' cache='{disk.cache}' discard='unmap'/>
      <source file={path}/><target dev='{target}' bus='virtio'/>
    </disk>"""
TARGETS = ["vda", "vdb", "vdc"]
UEFI = """    <loader readonly='yes' type='pflash'>{firmware}/OVMF_CODE_4M.fd</loader>
    <nvram template='{firmware}/OVMF_VARS_4M.fd'>{nvram}</nvram>
"""
BOOT_SECONDS = 600
# In the guest's shell: a program ends, and has ended.
END = "killall {0}; while pidof {0} >/dev/null; do sleep 0.1; done"


class Disk:
    """A disk's image file, as the domain has it."""

    def __init__(self, path, form="qcow2", cache="none"):
        self.path = path
        self.format = form
        self.cache = cache

    def make(self, size="192M", base=None):
        """Makes the image with an empty ext4 on it: in itself, or in a backing file of its own."""
        raw = self.path + ".mkfs"
        run("truncate", "-s", size, raw)
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", raw)
        if base:
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, base)
            run("qemu-img", "create", "-q", "-f", self.format, "-b", base, "-F", "qcow2", self.path)
        else:
            run("qemu-img", "convert", "-f", "raw", "-O", self.format, raw, self.path)
        os.remove(raw)
        return self


class Guest:
    """A domain of libvirt's whose workload can be watched from the host."""

    def __init__(self, name, folder, image, disks, idle=False, emulator=None,
                 uefi=False):
        self.name = name
        self.folder = folder
        self.disks = disks
        os.makedirs(folder, exist_ok=True)
        self.nvram = f"/var/lib/libvirt/qemu/nvram/{name}_VARS.fd"
        firmware = UEFI.format(firmware=image.firmware, nvram=self.nvram)
        number = sum(name.encode()) % 256
        self.xml = DOMAIN.format(
            name=name, ports=PORTS.format(folder=folder).rstrip("\n"), image=image,
            mac=f"52:54:00:00:00:{number:02x}",
            emulator=emulator or shutil.which("qemu-system-x86_64"),
            machine="q35" if uefi else "pc", firmware=firmware if uefi else "",
            cmdline="rig.idle" if idle else "",
            disks="\n".join(DISK.format(disk=disk, path=escaped(disk.path), target=target)
                            for disk, target in zip(disks, TARGETS)))
        self._control = None
        self._orders = 0

    def define(self):
        path = os.path.join(self.folder, "domain.xml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.xml)
        virsh("define", path)
        return self

    def say_to_kernel(self, words):
        """Gives the definition of the next start another kernel command line: what runs does not change."""
        xml = virsh("dumpxml", self.name, "--inactive").stdout
        self.xml = re.sub(r"( rig\.\w+)? *</cmdline>", f" {words}</cmdline>", xml)
        return self.define()

    def redirect(self, xml, folder):
        """Gives the restored definition of a renamed guest files of its own for console and the like:
        those in `folder` are the first guest's, and must not be in it."""
        with open(xml, encoding="utf-8") as file:
            text = file.read()
        if f"{folder}/" in text:
            raise Failure(f"the renamed machine would write to files of the other in {folder}")
        own = PORTS.format(folder=self.folder)
        with open(xml, "w", encoding="utf-8") as file:
            file.write(text.replace("</devices>", f"{own}  </devices>"))

    def start(self):
        """Starts the defined domain and waits until its agent answers and its workload writes."""
        seen, size = self.console_size(), self.records_size()
        virsh("start", self.name)
        self.wait_up(seen, size)
        return self

    def wait_up(self, console_seen=0, records_seen=0):
        wait_for(f"the guest {self.name} to come up",
                 lambda: self._said("rig: up", console_seen) or self._must_run(), BOOT_SECONDS,
                 pause=0.2)
        wait_for(f"the agent of {self.name}", self.agent_answers, BOOT_SECONDS, pause=0.2)
        wait_for(f"the workload of {self.name}", lambda: self.reports(records_seen), BOOT_SECONDS)
        self.connect()

    def _must_run(self):
        """It fails at once for a guest that has ended: nobody need wait for that one."""
        if self.state() == "shut off":
            raise Failure(f"{self.name} has ended before it came up")

    def connect(self):
        """Reaches the shell of the guest: each of its QEMUs has a socket of its own."""
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.connect(os.path.join(self.folder, "control"))

    def save_memory(self):
        """Stops the guest, with its memory kept by libvirt for the next start."""
        virsh("managedsave", self.name)
        self._control.close()

    def resume_memory(self):
        """Starts the guest where it was."""
        virsh("start", self.name)
        self.connect()
        self.wait_for_records(20)

    def pause(self):
        """Stops the guest's processor: it costs the host nothing, and writes nothing."""
        virsh("suspend", self.name)

    def resume(self):
        virsh("resume", self.name)

    def kill(self):
        """Ends QEMU as a power cut would."""
        virsh("destroy", self.name)
        self._control.close()

    def kill_qemu(self):
        """Ends QEMU's process as the kernel does when memory runs out: nothing is written back."""
        with open(f"/run/libvirt/qemu/{self.name}.pid", encoding="utf-8") as file:
            os.kill(int(file.read()), signal.SIGKILL)
        wait_for(f"{self.name} to be gone", lambda: self.state() == "shut off",
                 PATIENCE_SECONDS, pause=0.1)
        self._control.close()

    def kill_lost_qemu(self):
        """Ends a QEMU that libvirt takes for gone: what an admin does who is told of it."""
        # Its file of the id goes with a start that fails.
        pid = int(output("pgrep", "-f", f"guest={self.name},").split()[0])
        os.kill(pid, signal.SIGKILL)
        wait_for(f"the QEMU of {self.name} to be gone", lambda: not os.path.exists(f"/proc/{pid}"),
                 PATIENCE_SECONDS, pause=0.1)

    def power_off(self):
        """Shuts the guest down in good order: nothing is left to replay."""
        mounts = " ".join(f"/mnt/{target}" for target, _ in zip(TARGETS, self.disks))
        seen = self.console_size()
        end = f"{END.format('workload')}; umount {mounts} && echo rig: unmounted\n"
        self._control.sendall(end.encode())
        wait_for(f"{self.name} to unmount", lambda: self._has_said("rig: unmounted", seen),
                 PATIENCE_SECONDS)
        self._control.sendall(b"poweroff -f\n")
        wait_for(f"{self.name} to shut down", lambda: self.state() == "shut off", PATIENCE_SECONDS,
                 pause=0.1)
        self._control.close()

    def state(self):
        """As libvirt says it; nothing where it knows no such domain."""
        return virsh("domstate", self.name, check=False).stdout.strip()

    def forget(self):
        """Ends the domain, if it runs, and takes it out of libvirt."""
        if self.state() in ("running", "paused"):
            virsh("destroy", self.name, check=False)
        virsh("undefine", self.name, "--nvram", check=False)

    def order(self, command):
        """Has the guest's shell run a command, and waits until it has."""
        self._orders += 1
        sign = f"rig: did {self._orders} of {os.getpid()}"
        seen = self.console_size()
        self._control.sendall(f"{command}\necho {sign}\n".encode())
        wait_for(f"the guest to do: {command}", lambda: self._said(sign, seen),
                 PATIENCE_SECONDS)

    def begin(self, command):
        """Has the guest's shell run a command, and does not wait: the guest may stand still."""
        self._control.sendall(f"{command}\n".encode())

    def end(self, program):
        """Ends a program in the guest, and waits until it has."""
        self.order(END.format(program))

    # The agent.

    def agent(self, command, timeout=5):
        """What the agent answers; nothing where it does not."""
        done = virsh("qemu-agent-command", self.name, "--timeout", str(timeout),
                     json.dumps({"execute": command}), check=False, timeout=PATIENCE_SECONDS)
        return json.loads(done.stdout)["return"] if done.returncode == 0 else None

    def agent_answers(self):
        return self.agent("guest-ping") == {}

    def agent_is_connected(self):
        """Whether libvirt believes that there is an agent."""
        domain = ElementTree.fromstring(virsh("dumpxml", self.name).stdout)
        states = {target.get("name"): target.get("state")
                  for target in domain.iterfind("devices/channel/target")}
        return states["org.qemu.guest_agent.0"] == "connected"

    def freeze_status(self):
        """Frozen or thawed, as the agent says it once it answers."""
        return wait_for(f"the agent of {self.name}", lambda: self.agent("guest-fsfreeze-status"),
                        PATIENCE_SECONDS, pause=0.2)

    def is_thawed(self):
        return self.agent("guest-fsfreeze-status") == "thawed"

    # The workload: a line for every record that is safe, with the guest's own clock.

    def records_size(self):
        return _size(os.path.join(self.folder, "records"))

    def reports(self, since=0):
        """(record, microseconds) for each record reported after an offset of the report."""
        try:
            with open(os.path.join(self.folder, "records"), "rb") as file:
                file.seek(since)
                text = file.read()
        except FileNotFoundError:
            return []
        # The guest's terminal layer may add carriage returns; a line without end is not yet one.
        lines = text[:text.rfind(b"\n") + 1].split()
        numbers = [int(word) for word in lines]
        return list(zip(numbers[::2], numbers[1::2]))

    def newest(self):
        """The newest record that the guest has reported as safe; -1 where there is none."""
        size = self.records_size()
        since = max(0, size - 400)
        try:
            with open(os.path.join(self.folder, "records"), "rb") as file:
                file.seek(since)
                text = file.read()
        except FileNotFoundError:
            return -1
        if since:
            text = text[text.find(b"\n") + 1:]
        lines = text[:text.rfind(b"\n") + 1].splitlines()
        return int(lines[-1].split()[0]) if lines else -1

    def longest_gap_ms(self, since):
        """The longest time without a safe record, in ms of the guest's clock, since an offset."""
        reports = self.reports(max(0, since))
        gaps = [(later[1] - earlier[1]) / 1000 for earlier, later in zip(reports, reports[1:])]
        if not gaps:
            raise Failure(f"the workload of {self.name} reported nothing")
        return max(gaps)

    def longest_gap_ms_or_none(self, since):
        """The same; nothing where the guest did not run."""
        return self.longest_gap_ms(since) if len(self.reports(since)) > 1 else None

    def wait_for_records(self, count):
        """Waits until so many more records are safe, however slowly they come."""
        newest = self.newest()
        goal = newest + count
        while newest < goal:
            wait_for(f"a record of {self.name} behind {newest}, on the way to {goal}",
                     lambda known=newest: self.newest() > known, PATIENCE_SECONDS)
            newest = self.newest()

    def wait_for_records_behind(self, since):
        """Waits until a record is reported behind an offset of the report."""
        wait_for(f"a record of {self.name}", lambda: self.reports(since), PATIENCE_SECONDS)

    def wait_if_running(self):
        """A guest that runs has gone on, and is thawed."""
        if self.state() == "running":
            self.wait_for_records(5)

    # The console.

    def console_size(self):
        return _size(os.path.join(self.folder, "console"))

    def _console(self, since):
        try:
            with open(os.path.join(self.folder, "console"), "rb") as file:
                file.seek(since)
                return file.read()
        except FileNotFoundError:
            return b""

    def said_since(self, since):
        """What the guest has said since."""
        return self._console(since).decode(errors="replace")

    def has_come_up_since(self, since):
        """Whether it has started anew."""
        return self._has_said("rig: up", since)

    def _has_said(self, text, since):
        return text.encode() in self._console(since)

    def _said(self, text, since):
        """The same, of a guest that must not complain meanwhile."""
        said = self._console(since)
        for complaint in (b"rig: the workload is not running", b"could not be mounted",
                          b"Kernel panic"):
            if complaint in said and b"rig.idle" not in said and "rig.idle" not in self.xml:
                raise Failure(f"the guest {self.name} says: {said[-2000:].decode(errors='replace')}")
        return text.encode() in said


def _size(path):
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def freeze_by_hand(guest, inside):
    """Freezes the guest, does something, thaws it: what qdelta does, with virsh alone."""
    virsh("domfsfreeze", guest.name)
    try:
        inside()
    finally:
        virsh("domfsthaw", guest.name)


def clone(source, target):
    subprocess.run(["cp", "--reflink=always", source, target], check=True)
