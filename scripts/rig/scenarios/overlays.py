"""Guests on a file system that can't clone: overlays make their moment, and bitmaps tell what changed."""

import os
import signal
import time
from xml.etree import ElementTree

from ..check import check_disk, to_raw
from ..guest import Disk
from ..home import expect_at_home, has_overlays, is_away, job_of
from ..points import FREEZE_MAX, Chain
from ..run import PATIENCE_SECONDS, Failure, output, run, wait_for
from .kills import goes_on, start_backup
from .peers import COMMANDS, forget_checkpoints

HOSTS = ["ext4", "xfs", "btrfs"]
POINTS = 2
KILLS = 4
# What an increment may read, in parts of what has changed, and bytes beside.
READ_MAX = 1.2
READ_MORE = 1 << 20
VICTIMS = ["the command", "qdelta", "libvirtd", "QEMU"]
# The alarm where QEMU or libvirt died just when a disk left its overlay.
UNTOLD = "which of both has the latest writes can't be told"
LOST = "libvirt has lost the guest's QEMU"
# How long after the beginning of a backup, or after its overlays have come, a kill may be.
MOMENTS_SECONDS = (6, 2)


def overlays(rig):
    """Points under load by `external-snapshot`: raw and qcow2, names with spaces (ext4; all with more effort)."""
    _on_each(rig, "ext4", "external-snapshot", _overlays)


def _overlays(rig, guest, command, chain):
    print(output(command[1], "--check", guest.name, env=rig.environment()).strip())
    guest.wait_for_records(100)
    for number in range(POINTS * rig.effort):
        since = guest.records_size()
        point = chain.backup(*command)
        expect_at_home(guest)
        trackers = {disk["disk"].split("/")[-1]: disk["tracker"] for disk in point.result["disks"]}
        if number > 0 and trackers != {"vda": "bitmap", "vdb": "scan"}:
            raise Failure(f"the increment is by {trackers}: {point.result['disks']}")
        rig.say(f"point {number}: {trackers}, frozen for {point.freeze_ms} ms; the guest stood still for "
                f"{goes_on(guest, since):.0f} ms")
        guest.wait_for_records(50)
    _one_disk_alone(rig, guest, chain, command)
    guest.power_off()
    point = chain.backup(*command)
    _expect(point.consistency == "offline", f"a stopped guest's point is {point.consistency}")
    _expect_tracker(point, "vda", "bitmap")
    guest.start()
    guest.wait_for_records(50)
    point = chain.backup(*command)
    _expect_tracker(point, "vda", "bitmap")
    expect_at_home(guest)
    guest.pause()
    for point in chain.points:
        rig.say(f"{point.time}: {point.consistency}, whole up to record {chain.check(point)}")
    rig.qdelta("verify", "--repo", chain.repo)


def overlay_kills(rig):
    """The command, qdelta, libvirtd and QEMU are killed: the next run brings the guest back to its images (Btrfs)."""
    _on_each(rig, "btrfs", "external-snapshot", _overlay_kills)


def _overlay_kills(rig, guest, command, chain):
    guest.wait_for_records(50)
    chain.backup(*command)
    rng, count, found, decided, lost = rig.random(), {victim: 0 for victim in VICTIMS}, 0, 0, 0
    rounds = max(KILLS * rig.effort, int(os.environ.get("QDELTA_KILLS", "0")))
    for number in range(rounds):
        victim = VICTIMS[number % len(VICTIMS)]
        process = start_backup(rig, guest, chain, *command, *FREEZE_MAX)
        # What is most to be feared comes while there are overlays: so most kills do.
        among = rng.random() < 0.7
        if among:
            wait_for("the overlays", lambda: has_overlays(guest) or process.poll() is not None,
                     PATIENCE_SECONDS)
        time.sleep(rng.uniform(0, MOMENTS_SECONDS[among]))
        count[victim] += _kill(rig, guest, process, victim)
        said = process.communicate(timeout=PATIENCE_SECONDS)[0]
        found += is_away(guest)
        if process.returncode == 0 and is_away(guest):
            raise Failure(f"a backup that went well left the guest on an overlay:\n{said}")
        lost += _live_again(rig, guest, rng)
        point = None
        while not point:
            try:
                point = chain.backup(*command)
            except Failure as failure:
                if LOST in str(failure):
                    lost += 1
                    guest.kill_lost_qemu()
                elif UNTOLD in str(failure):
                    decided += 1
                    _decide(rig, guest)
                else:
                    raise
        expect_at_home(guest)
        point.state = f"after {victim} was killed"
        if number % 20 == 19:
            rig.say(f"{number + 1} kills")
    rig.say(f"kills that met their victim: {count}; {found} left the guest on an overlay until the next run, "
            f"{decided} left it to the admin which file is right, {lost} had libvirt lose a QEMU that ran on")
    if guest.state() == "running":
        guest.pause()
    # All of them at a hundred kills would take as long again.
    points = rng.sample(chain.points, min(2 + 2 * rig.effort, len(chain.points)))
    for point in [*points, chain.points[-1]]:
        chain.check(point)
    rig.say(f"{len(points)} points are whole")
    rig.qdelta("verify", "--repo", chain.repo)


def _decide(rig, guest):
    """The alarm that nobody can tell whether a disk had left its overlay: what an admin does then, who looks into both."""
    tree = ElementTree.fromstring(output("virsh", "dumpxml", "--inactive", guest.name))
    for index, disk in enumerate(guest.disks):
        away = [element for element in tree.iterfind("devices/disk")
                if element.find("source").get("file").startswith(disk.path + ".")]
        for element in away:
            overlay = element.find("source").get("file")
            if not os.path.exists(overlay + ".pivot"):
                continue
            newest = {}
            for path, form in [(overlay, "qcow2"), (disk.path, disk.format)]:
                raw = to_raw(path, form, rig.scratch)
                newest[path] = check_disk(raw, rig.scratch, index, len(guest.disks), False).newest
                os.remove(raw)
            rig.say(f"the admin finds: {newest}")
            if newest[overlay] >= newest[disk.path]:
                os.remove(overlay + ".pivot")
            else:
                element.find("source").set("file", disk.path)
                element.find("driver").set("type", disk.format)
                for chain in element.findall("backingStore"):
                    element.remove(chain)
    edited = os.path.join(rig.folder, "edited.xml")
    ElementTree.ElementTree(tree).write(edited)
    run("virsh", "define", edited)


def live_bitmaps(rig):
    """Points by `qemu-bitmap`: QEMU keeps the moment, and its bitmap tells what changed (XFS)."""
    _on_each(rig, "xfs", "qemu-bitmap", _live_bitmaps)


def _live_bitmaps(rig, guest, command, chain):
    run(command[1], "--check", guest.name, env=rig.environment())
    guest.wait_for_records(100)
    for number in range(POINTS * rig.effort):
        since = guest.records_size()
        point = chain.backup(*command)
        expect_at_home(guest, checkpoints=1)
        trackers = {disk["disk"].split("/")[-1]: disk["tracker"] for disk in point.result["disks"]}
        if number > 0 and trackers != {"vda": "live-bitmap", "vdb": "scan"}:
            raise Failure(f"the increment is by {trackers}: {point.result['disks']}")
        rig.say(f"point {number}: {trackers}, frozen for {point.freeze_ms} ms; the guest stood still for "
                f"{goes_on(guest, since):.0f} ms")
        guest.wait_for_records(50)
    rng, count = rig.random(), {victim: 0 for victim in VICTIMS}
    for number in range(max(2 * rig.effort, int(os.environ.get("QDELTA_KILLS", "0")))):
        victim = VICTIMS[(number + 1) % len(VICTIMS)]
        process = start_backup(rig, guest, chain, *command, *FREEZE_MAX)
        wait_for("the job", lambda: job_of(guest) or process.poll() is not None, PATIENCE_SECONDS)
        time.sleep(rng.uniform(0, 1))
        count[victim] += _kill(rig, guest, process, victim)
        process.communicate(timeout=PATIENCE_SECONDS)
        rig.libvirt.start()
        wait_for(f"libvirtd to know {guest.name}", lambda: guest.state() in ("running", "shut off"),
                 PATIENCE_SECONDS, pause=0.1)
        if guest.state() != "running":
            guest.start()
        point = chain.backup(*command)
        expect_at_home(guest, checkpoints=1)
        rig.say(f"after {victim} was killed: {[disk['tracker'] for disk in point.result['disks']]}")
    guest.pause()
    rig.say(f"kills that met their victim: {count}")
    points = rng.sample(chain.points, min(4 + 2 * rig.effort, len(chain.points)))
    for point in points:
        rig.say(f"{point.time}: {point.consistency}, whole up to record {chain.check(point)}")
    rig.qdelta("verify", "--repo", chain.repo)
    forget_checkpoints(guest)


def reads(rig):
    """What an increment reads is what has changed and the sample, by both commands of libvirt's."""
    folder = rig.filesystem("ext4").mount
    for name in ("external-snapshot", "qemu-bitmap"):
        disks = [Disk(os.path.join(folder, f"{name}-{disk}.qcow2")).make("1G") for disk in ("system", "data")]
        guest, command = rig.guest(name, disks), os.path.realpath(os.path.join(COMMANDS, name))
        chain = Chain(rig, guest, f"repo of {name}")
        guest.order("dd if=/dev/urandom of=/mnt/vdb/data bs=1M count=256 2>/dev/null; sync")
        chain.backup("--snapshot-command", command)
        for mib in (1, 8, 64):
            guest.order(f"dd if=/dev/urandom of=/mnt/vdb/data bs=1M conv=notrunc seek=10 count={mib} 2>/dev/null; sync")
            point = chain.backup("--snapshot-command", command)
            for disk in point.result["disks"]:
                own, changed = disk["bytes_read"] - disk["bytes_sampled"], disk["bytes_changed"]
                rig.say(f"{name}, {disk['disk'].split('/')[-1]} by {disk['tracker']}: {changed / (1 << 20):.2f} MiB "
                        f"changed, read {own / (1 << 20):.2f} MiB ({own / max(changed, 1):.2f}) and "
                        f"{disk['bytes_sampled'] / (1 << 20):.2f} MiB of sample")
                # A block of which a part was written is read as a whole, and so are the bitmap's own marks.
                if own > READ_MAX * changed + READ_MORE:
                    raise Failure(f"an increment read {own} bytes for {changed}: {disk}")
        guest.pause()
        chain.check(point)
        forget_checkpoints(guest)
        guest.forget()


def _on_each(rig, host, command, act):
    """Does something with a guest that has a qcow2 disk over a template and a raw disk, in files with spaces and commas in
    their names: on this host filesystem, or on that of QDELTA_FILESYSTEM; with more effort on all."""
    hosts = [host, *[other for other in HOSTS if other != host]] if rig.effort > 1 else [host]
    for kind in [os.environ["QDELTA_FILESYSTEM"]] if "QDELTA_FILESYSTEM" in os.environ else hosts:
        filesystem = rig.filesystem(kind, name=f"{command} on {kind}")
        folder = os.path.join(filesystem.mount, "images, of guests")
        os.makedirs(folder)
        template = os.path.join(folder, "a template.qcow2")
        disks = [Disk(os.path.join(folder, "the system's.qcow2")).make(base=template),
                 Disk(os.path.join(folder, "data & more.img"), form="raw").make()]
        guest = rig.guest(f"{command} on {kind}", disks)
        rig.say(f"on {kind}:")
        program = os.path.realpath(os.path.join(COMMANDS, command))
        act(rig, guest, ["--snapshot-command", program], Chain(rig, guest, f"{command} on {kind}.repo"))
        guest.forget()
        filesystem.close()


def _expect(condition, text):
    if not condition:
        raise Failure(text)


def _expect_tracker(point, target, tracker):
    for disk in point.result["disks"]:
        if disk["disk"].endswith(target):
            _expect(disk["tracker"] == tracker, f"{target} is by {disk['tracker']}: {disk}")


def _one_disk_alone(rig, guest, chain, command):
    """A disk that is left out is left alone."""
    other = Chain(rig, guest, "other")
    point = other.backup(*command, "--exclude", "vdb")
    _expect(len(point.result["disks"]) == 1, f"{point.result['disks']}")
    expect_at_home(guest)
    # The other repository's bitmap is not this one's to remove.
    _expect_tracker(chain.backup(*command), "vda", "bitmap")
    _expect_tracker(other.backup(*command, "--exclude", "vdb"), "vda", "bitmap")



def _kill(rig, guest, process, victim):
    """Kills one of them, if it is there; gives whether it was."""
    try:
        if victim == "qdelta":
            process.kill()
            return process.wait() == -signal.SIGKILL
        if victim == "libvirtd":
            rig.libvirt.kill()
            return True
        if victim == "QEMU":
            guest.kill_qemu()
            return True
        # It comes and goes: the next of its calls will do.
        pid = wait_for("a call of the command",
                       lambda: command_under(process.pid) or -(process.poll() is not None),
                       PATIENCE_SECONDS, pause=0.005)
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
        return pid > 0
    # A guest that stayed off since it was killed has no QEMU.
    except (ProcessLookupError, FileNotFoundError):
        return False


def command_under(parent):
    """The snapshot command that qdelta is waiting for, if there is one."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read()
            with open(f"/proc/{process}/stat", encoding="utf-8") as file:
                above = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if above == parent and b"snapshot-commands" in words:
            return int(process)
    return None


def _live_again(rig, guest, rng):
    """libvirtd and the guest run again, whatever was killed; the guest maybe from what an overlay holds. Whether libvirt
    had lost a QEMU."""
    rig.libvirt.start()
    wait_for(f"libvirtd to know {guest.name}", lambda: guest.state() in ("running", "shut off"),
             PATIENCE_SECONDS, pause=0.1)
    if guest.state() == "running":
        return False
    if rng.random() < 0.5:
        # The next backup finds it stopped.
        return False
    try:
        guest.start()
    except Failure as failure:
        # libvirt has lost a QEMU that runs on: who looks why it can't be started ends it, and starts nothing yet.
        if 'Failed to get shared "write" lock' not in str(failure):
            raise
        guest.kill_lost_qemu()
        return True
    return False

