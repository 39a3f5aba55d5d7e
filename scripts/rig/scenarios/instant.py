"""Instant recovery: a guest runs from its backup, loses its server, and is brought home."""

import json
import os
import time

from ..check import check_point
from ..guest import Disk
from ..libvirt import virsh
from ..points import Chain, domain_xml, restored_disks
from ..run import PATIENCE_SECONDS, Failure, output, run, wait_for
from ..served import Server

# Records that a guest writes until it counts as going on.
GOES_ON = 100
# Of a measurement: the quickest counts.
ROUNDS = 3


def instant(rig):
    """A lost guest runs from its point, survives the death of its server, and is pulled home."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("lost", rig.two_disks(xfs.mount))
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    chain.backup()
    guest.wait_for_records(100)
    point = chain.backup()
    newest = chain.check(point)
    guest.kill()
    guest.forget()
    for disk in guest.disks:
        os.remove(disk.path)

    folder = os.path.join(xfs.mount, "instant")
    report = restore(rig, chain, point, folder)
    expect_pinned(rig, chain, point, True)
    served = report["instant"]
    server = Server(rig, served).start()
    check_overlays(served)
    guest.disks = restored_disks(folder)
    seen, size, begin = guest.console_size(), guest.records_size(), time.monotonic()
    virsh("define", domain_xml(folder))
    virsh("start", guest.name)
    guest.wait_up(seen, size)
    rig.say(f"from define to the agent and the first record: {time.monotonic() - begin:.1f} s")
    first = guest.reports(size)[0][0]
    if first != newest + 1:
        raise Failure(f"the guest goes on with record {first}, not with {newest + 1}")

    lose_server(rig, guest, server)
    # A backup would read the backup.
    chain.refused("--same-guest", words=["its backing file lies on a server (protocol nbd)"])
    bring_home(rig, guest, served)
    rig.promised("memory of the server", server.peak_mib(), 128, "MiB")
    server.stop()
    guest.wait_for_records(100)
    acknowledged = guest.newest()
    guest.power_off()
    newest = check_point([(disk.path, disk.format) for disk in guest.disks], rig.scratch, acknowledged,
                         "filesystem-quiesced")
    rig.say(f"at home with every record up to {newest}")
    for command in served["after"]:
        if command.startswith("qdelta "):
            rig.qdelta(*command.split()[1:])
    expect_pinned(rig, chain, point, False)


def pulled_home(rig):
    """A guest that never ran is pulled home, and its disks equal a restore of the point."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("still", rig.two_disks(xfs.mount))
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    point = chain.backup()
    folder = os.path.join(xfs.mount, "instant")
    served = restore(rig, chain, point, folder, "--rename", "still-instant")["instant"]
    twin = rig.adopt("still-instant", restored_disks(folder), os.path.join(folder, "rig"))
    xml = domain_xml(folder)
    twin.redirect(xml, guest.folder)
    server = Server(rig, served).start()
    virsh("define", xml)
    virsh("start", twin.name, "--paused")
    bring_home(rig, twin, served)
    virsh("destroy", twin.name)
    server.stop()
    copied = os.path.join(xfs.mount, "copied")
    for disk, other in zip(twin.disks, chain.restore(point, "copied", copied)):
        run("qemu-img", "compare", disk.path, other.path)


def instant_boots(rig):
    """A guest that runs on its point is up about as soon as one with disks of its own."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("boots", [Disk(os.path.join(xfs.mount, "system.qcow2")).make("512M")])
    chain = Chain(rig, guest)
    # As a system has it: half of it can't be compressed.
    guest.order("for i in $(seq 40); do { head -c 1500000 /dev/urandom; yes $i | head -c 1500000; } "
                ">/mnt/vda/file$i; done; sync")
    guest.wait_for_records(50)
    point = chain.backup()
    guest.kill()
    copied, now = (os.path.join(xfs.mount, name) for name in ("copied", "now"))
    chain.restore(point, "boots-copied", copied)
    served = restore(rig, chain, point, now, "--rename", "boots-now")["instant"]
    server = Server(rig, served).start()
    twins = {}
    for name, folder in (("boots-copied", copied), ("boots-now", now)):
        twins[name] = rig.adopt(name, restored_disks(folder), os.path.join(folder, "rig"))
        xml = domain_xml(folder)
        twins[name].redirect(xml, guest.folder)
        virsh("define", xml)
    took = {name: [] for name in twins}
    for _ in range(ROUNDS):
        for name, twin in twins.items():
            server.forget()
            run("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
            took[name].append(up_and_read(twin))
    for index, what in enumerate(("start to agent", "start to 120 MB read")):
        own, served_s = (min(times[index] for times in took[name]) for name in twins)
        rig.say(f"{what}: {own:.1f} s with disks of its own, {served_s:.1f} s on the point")
        rig.promised(f"{what}, on the point against disks of its own", served_s / own, 1.3, "times")
    rig.promised("memory of the server", server.peak_mib(), 128, "MiB")


def up_and_read(twin):
    """Seconds from the start until the agent answers, and until all files are read."""
    seen, begin = twin.console_size(), time.monotonic()
    virsh("start", twin.name)
    wait_for("the agent", twin.agent_answers, PATIENCE_SECONDS, pause=0.05)
    agent = time.monotonic() - begin
    twin.wait_up(seen)
    twin.order("cat /mnt/vda/file* >/dev/null")
    read = time.monotonic() - begin
    twin.kill()
    return agent, read


def restore(rig, chain, point, folder, *options):
    """An instant restore; gives its report."""
    return rig.qdelta_json("restore", "--domain", chain.guest.name, "--repo", chain.repo,
                           "--at", point.time, "--to", folder, "--instant", *options)


def expect_pinned(rig, chain, point, pinned):
    listed = rig.qdelta_json("points", "--repo", chain.repo, chain.guest.name)
    marks = [entry.get("pins") for disk in listed["disks"] for entry in disk["points"]
             if entry["point"] == point.time]
    if not marks or any(bool(mark) != pinned for mark in marks):
        raise Failure(f"the point is {'not ' if pinned else ''}pinned: {marks}")


def check_overlays(served):
    """QEMU takes each overlay for what it is: empty, and over the served disk."""
    for disk in served["disks"]:
        run("qemu-img", "check", "-q", disk["overlay"])
        info = json.loads(output("qemu-img", "info", "--output=json", disk["overlay"]))
        name = info.get("backing-filename", "")
        if not name.startswith("nbd+unix:///") or info.get("backing-filename-format") != "raw":
            raise Failure(f"{disk['overlay']} has no served disk below it: {info}")
        if info["virtual-size"] != disk["virtual_size"]:
            raise Failure(f"{disk['overlay']} has another size than its disk: {info}")


def goes_on(guest):
    """Resumes the guest as often as it pauses, until it has written its records; gives the resumes.

    libvirt before 9.5 can't have QEMU wait for a server: each request that was lost pauses the guest
    once more, so each resume is one more try.
    """
    goal, resumes = guest.newest() + GOES_ON, 0

    def is_there():
        nonlocal resumes
        if guest.state() == "paused":
            guest.resume()
            resumes += 1
        return guest.newest() >= goal

    wait_for("the guest to go on with its server back", is_there, PATIENCE_SECONDS, pause=1)
    return resumes


def lose_server(rig, guest, server):
    """The server dies under the guest: the guest pauses, and goes on where it was."""
    server.kill()
    begin = time.monotonic()
    # What is in the guest's page cache needs no server.
    guest.begin("while :; do echo 3 >/proc/sys/vm/drop_caches; cat /mnt/vd?/records/* >/dev/null; sleep 1; done &")
    wait_for("the guest to be paused", lambda: guest.state() == "paused", PATIENCE_SECONDS, pause=0.2)
    reason = virsh("domstate", guest.name, "--reason").stdout.strip()
    if "I/O error" not in reason:
        raise Failure(f"the guest is {reason}")
    rig.say(f"without its server, the guest paused after {time.monotonic() - begin:.1f} s: {reason}")
    server.start()
    rig.say(f"with its server back, the guest went on after {goes_on(guest)} x virsh resume")


def bring_home(rig, guest, served):
    """The commands of the restore pull all disks home; nothing names the server any more then."""
    before = guest.newest()
    for command in served["home"]:
        run("sh", "-c", command, env=rig.environment())
    rig.say(f"{guest.newest() - before} records were written while the disks were pulled home")
    for text in (virsh("dumpxml", guest.name).stdout, virsh("dumpxml", guest.name, "--inactive").stdout):
        if "nbd" in text:
            raise Failure(f"the definition still names the server:\n{text}")
    for disk in guest.disks:
        info = json.loads(output("qemu-img", "info", "-U", "--output=json", disk.path))
        if "backing-filename" in info:
            raise Failure(f"{disk.path} still has a disk below it: {info}")
