"""A libvirtd that is killed as it begins a backup job holds it for ever: that is told, and what is told helps."""

import os
import signal
import subprocess

from .. import home
from ..guest import Disk
from ..libvirt import state_of, virsh
from ..run import PATIENCE_SECONDS, Failure, run, wait_for
from ..standin import StandIn
from .peers import COMMANDS

# The status of a backup that made no point of a guest.
NO_POINT = 10
WORDS = "holds a backup job of web that was never begun"


def held_job(rig):
    """A job that libvirt holds and that was never begun is told in the same words by all, and is got rid of while the guest
    runs on (ext4)."""
    mount = rig.filesystem("ext4").mount
    disks = [Disk(os.path.join(mount, "vda.qcow2")).make("16M")]
    guest = StandIn("web", os.path.join(rig.folder, "web"), disks, rig.qemu_versions()[0].program("qemu-system-x86_64"))
    guest.start(paused=True)
    guest.take_over(guest.read(rig.scratch))
    repo = os.path.join(rig.folder, "repo")
    rig.qdelta("init", repo)
    backups = {name: [rig.qdelta_program, "backup", "--repo", repo, "--freeze-max", "60000", "--domain", guest.name,
                      "--snapshot-command", os.path.realpath(os.path.join(COMMANDS, name))]
               for name in ("qemu-bitmap", "external-snapshot")}
    try:
        _expect(_done(rig, backups["qemu-bitmap"]), 0, "")
        _kill_as_it_begins(rig, guest)
        for name, words in backups.items():
            _expect(_done(rig, words), NO_POINT, WORDS)
            _expect(_done(rig, [words[-1], "--check", guest.name]), 1, WORDS)
            rig.say(f"{name} says of it what there is to do")
        # What does not help.
        virsh("domjobabort", guest.name)
        rig.libvirt.kill()
        rig.libvirt.start()
        _expect(_done(rig, backups["qemu-bitmap"]), NO_POINT, WORDS)
        pid = guest.pid()
        rig.libvirt.forget_job(guest.name)
        for name, words in backups.items():
            _expect(_done(rig, words), 0, "")
            home.expect_at_home(guest, repositories=1, checkpoints=1)
        if guest.pid() != pid:
            raise Failure("the guest has another QEMU")
        guest.flush()
        guest.expect(guest.read(rig.scratch), "after all")
        rig.say("without it in libvirt's state, both make points, and the guest has run on")
    finally:
        guest.forget()


def _kill_as_it_begins(rig, guest):
    """Kills libvirtd when it has noted the job, and QEMU, which stands still, has heard nothing of it."""
    job = os.path.join(rig.scratch, "job.xml")
    with open(job, "w", encoding="utf-8") as file:
        file.write("<domainbackup mode='pull'>"
                   f"<server transport='unix' socket='{rig.scratch}/s.sock'/><disks><disk name='vda' backup='yes' "
                   f"type='file'><scratch file='{rig.scratch}/scratch'/></disk></disks></domainbackup>")

    def is_noted():
        with open(state_of(guest.name), encoding="utf-8") as file:
            return "async='backup'" in file.read()
    os.kill(guest.pid(), signal.SIGSTOP)
    try:
        process = subprocess.Popen(["virsh", "-c", "qemu:///system", "backup-begin", guest.name, job],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        wait_for("the job in libvirt's state", is_noted, PATIENCE_SECONDS, pause=0)
        rig.libvirt.kill()
        process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        os.kill(guest.pid(), signal.SIGCONT)
    rig.libvirt.start()
    wait_for("libvirtd to know the guest", lambda: guest.state() == "paused", PATIENCE_SECONDS, pause=0.05)


def _done(rig, words):
    return run(*words, env=rig.environment(), check=False)


def _expect(done, status, words):
    if done.returncode != status or words not in done.stdout:
        raise Failure(f"this ended with {done.returncode} and not {status}, or did not say {words!r}:\n{done.stdout}")
