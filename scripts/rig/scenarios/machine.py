"""The machine, not only its disks: all of it is lost, and comes back."""

import os
import shutil

from ..check import check_point
from ..libvirt import virsh
from ..points import Chain, restored_disks
from ..run import Failure, run


def machine(rig):
    """A UEFI guest's disks, firmware variables and definition are lost; a restore brings all back."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("lost", rig.two_disks(xfs.mount, chain=True), uefi=True)
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    chain.backup()
    guest.wait_for_records(100)
    point = chain.backup()
    uuid = virsh("domuuid", guest.name).stdout.strip()

    target = os.path.join(rig.folder, "restored")
    said = rig.qdelta("restore", "--domain", guest.name, "--repo", chain.repo, "--to", target,
                      check=False)
    if said.returncode == 0 and os.path.samefile(guest.disks[0].path,
                                                 restored_disks(target)[0].path):
        raise Failure("a restore wrote over the disks of a guest that runs")
    shutil.rmtree(target, ignore_errors=True)

    guest.kill()
    variables = _read(guest.nvram)
    guest.forget()
    for disk in guest.disks:
        os.remove(disk.path)
    os.remove(guest.nvram) if os.path.exists(guest.nvram) else None

    done = rig.qdelta("restore", "--domain", guest.name, "--repo", chain.repo, "--to", target)
    disks = restored_disks(target)
    newest = check_point([(disk.path, disk.format) for disk in disks], rig.scratch,
                         point.acknowledged, point.consistency, point.begun)
    if not any(_read(os.path.join(folder, name)) == variables
               for folder, _, names in os.walk(target) for name in names
               if os.path.getsize(os.path.join(folder, name)) == len(variables)):
        raise Failure(f"the firmware variables are not in {target}")
    again = rig.qdelta("restore", "--domain", guest.name, "--repo", chain.repo, "--to", target,
                       check=False)
    if again.returncode == 0:
        raise Failure("a second restore wrote over the first without --force")

    lines = [line.strip().removeprefix("$ ") for line in done.stdout.splitlines()]
    lines = [line for line in lines if line.startswith("virsh ")]
    if [line.split()[1] for line in lines] != ["define", "start"]:
        raise Failure(f"the lines to define and start the guest are not there:\n{done.stdout}")
    seen = guest.console_size()
    size = guest.records_size()
    for line in lines:
        run("sh", "-c", line, env=rig.environment())
    guest.wait_up(seen, size)
    if virsh("domuuid", guest.name).stdout.strip() != uuid:
        raise Failure("the restored guest has another UUID, though nobody asked for one")
    first = guest.reports(size)[0][0]
    if first != newest + 1:
        raise Failure(f"the restored guest goes on with record {first}, not with {newest + 1}")
    rig.say(f"the guest was whole up to record {newest}, and went on from there with the same UUID")


def _read(path):
    with open(path, "rb") as file:
        return file.read()
