"""What an admin, and the shutdown of a host, do to a guest while it is on the overlay of a backup."""

import json
import os
import signal

from .. import home
from ..guest import Disk
from ..libvirt import virsh
from ..run import PATIENCE_SECONDS, Failure, output, run
from ..standin import StandIn
from .peers import COMMANDS
from .shared import stopped_in_its_middle

# The status of a backup whose point is good, and of which something could not be released.
NOT_RELEASED = 13
# That of one that made no point of a guest.
NO_POINT = 10


def meanwhile(rig):
    """Internal snapshots, saved memory and overlays of the admin's while a guest is on a backup's overlay (ext4)."""
    mount = rig.filesystem("ext4").mount
    disks = [Disk(os.path.join(mount, f"{target}.qcow2")).make("16M") for target in ("vda", "vdb")]
    guest = StandIn("web", os.path.join(rig.folder, "web"), disks, rig.qemu_versions()[0].program("qemu-system-x86_64"))
    guest.start(paused=True)
    guest.take_over(guest.read(rig.scratch))
    try:
        backup = _Backup(rig, guest)
        backup.goes_well()
        _internal_snapshot(rig, guest, backup)
        _saved_memory(rig, guest, backup)
        _overlay_on_top(rig, guest, backup, os.path.join(mount, "top.qcow2"))
        _other_definition(rig, guest, backup)
    finally:
        guest.forget()


class _Backup:
    """Backups of the guest by `external-snapshot`."""

    def __init__(self, rig, guest):
        self.guest, self.scratch, self.random = guest, rig.scratch, rig.random()
        repo = os.path.join(rig.folder, "repo")
        rig.qdelta("init", repo)
        # QEMU reverts to no snapshot of an image that has bitmaps.
        self.environment = rig.environment(QDELTA_BITMAPS="no")
        self.words = [rig.qdelta_program, "backup", "--repo", repo, "--freeze-max", "60000", "--domain", guest.name,
                      "--snapshot-command", os.path.realpath(os.path.join(COMMANDS, "external-snapshot"))]

    def while_away(self, act):
        """Does something while the guest is on the overlays; gives the status and what was said."""
        self._write()
        process, _ = stopped_in_its_middle(self.words, self.environment, lambda: home.has_overlays(self.guest))
        try:
            self._write()
            act()
        finally:
            process.send_signal(signal.SIGCONT)
            said = process.communicate(timeout=PATIENCE_SECONDS)[0]
        return process.returncode, said

    def done(self):
        done = run(*self.words, env=self.environment, check=False)
        return done.returncode, done.stdout

    def goes_well(self):
        status, said = self.done()
        if status != 0:
            raise Failure(f"a backup ended with {status}: {said}")
        home.expect_at_home(self.guest, repositories=1)
        return said

    def _write(self):
        for _ in range(5):
            self.guest.write(self.random)

    def expect_whole(self, when):
        """The guest's disks hold all that was written."""
        self.guest.flush()
        self.guest.expect(self.guest.read(self.scratch), when)


def _expect_said(got, status, words):
    if got[0] != status or words not in got[1]:
        raise Failure(f"a backup ended with {got[0]} and not {status}, or did not say {words!r}:\n{got[1]}")


def _internal_snapshot(rig, guest, backup):
    """It lies in the overlay, and would go with it."""
    said = backup.while_away(lambda: virsh("snapshot-create-as", guest.name, "s1"))
    _expect_said(said, NOT_RELEASED, "internal snapshots, which would be lost (s1)")
    if not home.is_away(guest):
        raise Failure("the guest has left the overlay in which its snapshot lies")
    backup.expect_whole("with the snapshot")
    # It can still be had.
    virsh("snapshot-revert", guest.name, "s1", "--force")
    guest.connect()
    guest.take_over(guest.read(rig.scratch))
    virsh("snapshot-delete", guest.name, "s1")
    backup.goes_well()
    backup.expect_whole("without the snapshot")
    rig.say("an internal snapshot is not lost with the overlay")


def _saved_memory(rig, guest, backup):
    """What libvirt-guests does with every guest when the host is shut down: the memory belongs to the overlays."""
    def save():
        guest.flush()
        guest.disconnect()
        virsh("managedsave", guest.name)
    status, said = backup.while_away(save)
    # Where qdelta had not yet looked at the moment, there is no point.
    if status not in (NO_POINT, NOT_RELEASED) or "the memory belongs to these overlays" not in said:
        raise Failure(f"a backup beside which the memory was saved ended with {status}: {said}")
    status, said = backup.done()
    if status == 0 or "virsh start" not in said:
        raise Failure(f"a backup of the guest with its memory saved ended with {status}: {said}")
    guest.start(paused=False)
    backup.expect_whole("started from its memory")
    # Before it has gone on, QEMU has its images for inactive, and commits nothing.
    _expect_said(backup.done(), NO_POINT, "Let it go on once (virsh resume)")
    virsh("resume", guest.name)
    virsh("suspend", guest.name)
    backup.goes_well()
    backup.expect_whole("started from its memory, and at home")
    rig.say("a guest whose memory was saved meanwhile starts from it, and comes home then")


def _other_definition(rig, guest, backup):
    """The guest is defined as it was before, and stopped: it would start without what is in the overlays."""
    before = os.path.join(rig.scratch, "before.xml")
    with open(before, "w", encoding="utf-8") as file:
        file.write(virsh("dumpxml", guest.name, "--inactive").stdout)

    def define():
        virsh("define", before)
        guest.stop()
    words = "is in the overlay alone"
    status, said = backup.while_away(define)
    if status not in (NO_POINT, NOT_RELEASED) or words not in said:
        raise Failure(f"a backup beside which the guest was defined anew ended with {status}: {said}")
    _expect_said(backup.done(), NO_POINT, words)
    for overlay in [path for path in home.files(guest) if home.OVERLAY.search(path)]:
        run("qemu-img", "commit", "-q", overlay)
        os.remove(overlay)
    backup.goes_well()
    guest.expect(guest.read(backup.scratch), "committed by hand")
    rig.say("what a stopped guest has in an overlay alone is told")


def _overlay_on_top(rig, guest, backup, top):
    """The disk can't leave an overlay over which another one lies."""
    specs = ["--diskspec", f"vda,file={top}", "--diskspec", "vdb,snapshot=no"]
    words = "which somebody has put over"
    said = backup.while_away(
        lambda: virsh("snapshot-create-as", guest.name, "--disk-only", "--no-metadata", *specs))
    _expect_said(said, 0, words)
    _expect_said(backup.done(), 0, words)
    backup.expect_whole("under the admin's overlay")
    chain = json.loads(output("qemu-img", "info", "-U", "--output=json", "--backing-chain", top))
    ours = [layer["filename"] for layer in chain if home.OVERLAY.search(layer["filename"])]
    if len(ours) != 1:
        raise Failure(f"below the admin's overlay there are {ours}")
    virsh("blockcommit", guest.name, "vda", "--top", ours[0], "--wait")
    os.remove(ours[0])
    virsh("blockcommit", guest.name, "vda", "--active", "--pivot", "--wait")
    backup.goes_well()
    backup.expect_whole("committed")
    rig.say("an overlay that the admin has buried is told each time")
