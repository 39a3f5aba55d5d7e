"""A guest without a system: libvirt runs it, and the rig writes to its disks by a monitor of QEMU's.

It starts in a tenth of a second and costs the host no processor, so it can be killed by the hundred. What its disks
must hold is known byte by byte: every write is noted when it is begun and when it is done, in one order for all
disks. So a point of it must be what they were at one moment, between two of these writes.
"""

import os
import signal
import threading
from xml.sax.saxutils import quoteattr as escaped

from .libvirt import virsh
from .monitor import Died, Monitor, Refused
from .run import PATIENCE_SECONDS, Failure, output, run, wait_for

KIB, MIB = 1 << 10, 1 << 20
DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
  <features><acpi/></features>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
{disks}
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:{monitor},server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""
DISK = """    <disk type='file' device='disk'>
      <driver name='qemu' type='{disk.format}' cache='{disk.cache}' discard='unmap'/>
      <source file={path}/><target dev='{target}' bus='virtio'/>
    </disk>"""
TARGETS = ["vda", "vdb"]


class Write:
    """A write that was begun: what is in its range when it is done."""

    def __init__(self, disk, offset, data):
        self.disk, self.offset, self.data = disk, offset, data
        self.end = offset + len(data)


class StandIn:
    """A domain of libvirt's with disks of which every byte is known."""

    def __init__(self, name, folder, disks, emulator):
        self.name, self.folder, self.disks = name, folder, disks
        os.makedirs(folder, exist_ok=True)
        self.monitor_path = os.path.join(folder, "monitor")
        self.monitor = None
        # What each disk holds if every write was done; and those of them that a flush has not made safe.
        self.content = [bytearray() for _ in disks]
        self.unsafe = []
        xml = DOMAIN.format(name=escaped(name)[1:-1], monitor=self.monitor_path, emulator=emulator, disks="\n".join(
            DISK.format(disk=disk, path=escaped(disk.path), target=target) for disk, target in zip(disks, TARGETS)))
        definition = os.path.join(folder, "domain.xml")
        with open(definition, "w", encoding="utf-8") as file:
            file.write(xml)
        virsh("define", definition)

    # Its state.

    def start(self, paused):
        virsh("start", self.name, *(["--paused"] if paused else []))
        self.connect()

    def connect(self):
        """A monitor that was spoken to before has been closed, or its QEMU has ended."""
        def connects():
            try:
                self.monitor = Monitor(self.monitor_path)
            except (OSError, Died):
                return False
            return True
        self.disconnect()
        wait_for(f"the monitor of {self.name}", connects, PATIENCE_SECONDS)

    def disconnect(self):
        if self.monitor:
            self.monitor.close()
        self.monitor = None

    def state(self):
        """As libvirt says it; nothing where it can't be asked."""
        return virsh("domstate", self.name, check=False).stdout.strip()

    def is_on(self):
        """Whether its QEMU answers: nobody has to be started to know that."""
        return self.status() is not None

    def status(self):
        """Running or paused, as its QEMU says it; nothing where there is none."""
        try:
            return "running" if self.monitor and self.monitor.execute("query-status")["running"] else (
                "paused" if self.monitor else None)
        except Died:
            self.disconnect()
            return None

    def stop(self):
        """Ends QEMU in good order: all that it has in memory is written."""
        if self.monitor:
            self.flush()
        virsh("destroy", self.name, "--graceful")
        self.disconnect()

    def pid(self):
        with open(f"/run/libvirt/qemu/{self.name}.pid", encoding="utf-8") as file:
            return int(file.read())

    def kill_qemu(self):
        """Ends QEMU's process as the kernel does when memory runs out: nothing is written back."""
        os.kill(self.pid(), signal.SIGKILL)

    def forget(self):
        virsh("destroy", self.name, check=False)
        self.disconnect()
        for name in reversed(virsh("checkpoint-list", self.name, "--name", "--topological",
                                   check=False).stdout.split()):
            virsh("checkpoint-delete", self.name, name, "--metadata", check=False)
        virsh("managedsave-remove", self.name, check=False)
        virsh("undefine", self.name, "--snapshots-metadata", check=False)

    # Its disks.

    def device(self, index):
        return f"/machine/peripheral/virtio-disk{index}/virtio-backend"

    def qemu_io(self, index, command):
        """What a guest does to its disk, in the words of qemu-io. QEMU does nothing else meanwhile: where a job may
        hold back what guests do, it would never end."""
        said = self.monitor.line(f'qemu-io -d {self.device(index)} "{command}"')
        if said.strip():
            raise Refused(f"{command}: {said.strip()}")

    def _ended(self, index):
        """How many writes to a disk have ended, and how many of them failed."""
        (stats,) = [it["stats"] for it in self.monitor.execute("query-blockstats")
                    if it.get("qdev") == self.device(index)]
        return stats["wr_operations"] + stats["failed_wr_operations"], stats["failed_wr_operations"]

    def write(self, random, begun=lambda write: None):
        """One write to one of the disks; `begun` is told of it before it is done. Like a guest's
        it waits where QEMU holds it back; some make all before them safe."""
        index = random.randrange(len(self.disks))
        size = len(self.content[index])
        align = random.choice([1, 512, 4 * KIB, 64 * KIB])
        offset = random.randrange(size) // align * align
        length = max(1, min(random.randrange(1, random.choice([KIB, 16 * KIB, 200 * KIB])), size - offset))
        byte, is_safe = random.randrange(256), random.random() < 0.15
        command = f"aio_write -q -P {byte}{' -f' if is_safe else ''} {offset} {length}"
        write = Write(index, offset, bytes([byte]) * length)
        begun(write)
        # From here on it may be there.
        self.unsafe.append(write)
        count, failed = self._ended(index)
        said = self.monitor.line(f'qemu-io -d {self.device(index)} "{command}"').strip()
        if said:
            raise Refused(f"{command}: {said}")
        wait_for(f"{command} on disk {index}", lambda: self._ended(index)[0] > count, PATIENCE_SECONDS, pause=0.001)
        if self._ended(index)[1] > failed:
            raise Refused(f"{command} failed")
        self.content[index][write.offset:write.end] = write.data
        if is_safe:
            self.unsafe = [other for other in self.unsafe if other.disk != index]
        return command

    def flush(self):
        """All that was written is safe, whatever becomes of QEMU."""
        for index in range(len(self.disks)):
            self.qemu_io(index, "flush")
        self.unsafe.clear()

    def files(self):
        """The file that each disk is on, by target: of QEMU, or of the definition where it is stopped."""
        if self.is_on():
            found = {it["qdev"]: it["inserted"]["image"]["filename"] for it in self.monitor.execute("query-block")
                     if it.get("inserted")}
            return {target: found[self.device(index)] for index, target in enumerate(TARGETS[:len(self.disks)])}
        lines = output("virsh", "-q", "-c", "qemu:///system", "domblklist", self.name).splitlines()
        rows = dict(line.split(None, 1) for line in lines)
        return {target: rows[target].strip() for target in TARGETS[:len(self.disks)]}

    def form(self, index, path):
        return self.disks[index].format if path == self.disks[index].path else "qcow2"

    def read(self, scratch):
        """What QEMU's tools find on each disk now; nobody may write meanwhile, and all must be flushed."""
        found = []
        for index, path in enumerate(self.files().values()):
            raw = os.path.join(scratch, f"{TARGETS[index]}.read")
            run("qemu-img", "convert", "-U", "-f", self.form(index, path), "-O", "raw", path, raw)
            with open(raw, "rb") as file:
                found.append(bytearray(file.read()))
            os.remove(raw)
        return found

    def expect(self, found, when):
        """The disks hold what they must: every write; or of one that was never flushed, maybe what was there before."""
        for index, (disk, wanted) in enumerate(zip(found, self.content)):
            if len(disk) != len(wanted):
                raise Failure(f"{when}: disk {index} has {len(disk)} bytes, not {len(wanted)}")
            sure, sure_wanted = bytearray(disk), bytearray(wanted)
            for write in self.unsafe:
                if write.disk == index:
                    sure[write.offset:write.end] = sure_wanted[write.offset:write.end] = bytes(len(write.data))
            if sure != sure_wanted:
                at = next(at for at, (one, other) in enumerate(zip(sure, sure_wanted)) if one != other)
                raise Failure(f"{when}: disk {index} has {disk[at]} at {at}, not {wanted[at]}, which was safe")

    def take_over(self, found):
        """What is there counts from now on; all of it is safe."""
        self.content = [bytearray(disk) for disk in found]
        self.unsafe = []


class Writer(threading.Thread):
    """Writes to a stand-in all the while, in one order over all disks, until it is stopped or QEMU ends."""

    def __init__(self, guest, random, pause_seconds=0.02):
        super().__init__(daemon=True)
        self.guest, self.random, self.pause = guest, random, pause_seconds
        self.before = [bytes(disk) for disk in guest.content]
        # In the order in which they were begun; each was done before the next one.
        self.writes = []
        self.cut_off, self.failure = None, None
        self._ending = threading.Event()

    def run(self):
        try:
            while not self._ending.wait(self.pause * self.random.uniform(0, 2)):
                try:
                    self.guest.write(self.random, self.writes.append)
                except Refused as refusal:
                    self.failure = refusal
                    return
        except Died as death:
            self.cut_off = death
        except Exception as failure:
            self.failure = failure

    def stop(self):
        """No more writes; fails if one was refused."""
        self._ending.set()
        self.join(PATIENCE_SECONDS)
        if self.is_alive():
            raise Failure("a write to a disk never ended")
        if self.failure:
            raise Failure(f"a write to a disk failed: {self.failure}") from self.failure

    def moment_of(self, found):
        """How many of the writes are in disks of one moment; fails if they are of none."""
        now = [bytearray(disk) for disk in self.before]
        for count in range(len(self.writes) + 1):
            if all(disk == other for disk, other in zip(now, found)):
                return count
            if count < len(self.writes):
                write = self.writes[count]
                now[write.disk][write.offset:write.end] = write.data
        raise Failure(f"the disks are of no moment between {len(self.writes)} writes")
