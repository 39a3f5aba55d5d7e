"""Guests whose images have one name, and one folder for what is made beside the images of all."""

import os
import signal
import subprocess

from .. import home
from ..guest import Disk
from ..run import PATIENCE_SECONDS, Failure, wait_for
from ..standin import StandIn
from .overlays import command_under
from .peers import COMMANDS


def shared_folders(rig):
    """One folder for the overlays, scratch files and sockets of all guests: no backup takes away another's."""
    mount = rig.filesystem("ext4").mount
    # The path of a socket must not be long.
    shared = os.path.join(mount, "all")
    os.makedirs(shared)
    env = rig.environment(**dict.fromkeys(("QDELTA_OVERLAYS", "QDELTA_SCRATCH", "QDELTA_SOCKETS"), shared))
    repo = os.path.join(rig.folder, "repo")
    rig.qdelta("init", repo)
    guests = [_guest(rig, name, os.path.join(mount, name)) for name in ("web", "db")]
    try:
        for command in ("external-snapshot", "qemu-bitmap"):
            _beside_each_other(rig, guests, _words(rig, repo, command), env, shared)
            rig.say(f"{command}: a backup under way and one that was killed kept what they had made")
    finally:
        for guest in guests:
            guest.forget()


def _guest(rig, name, folder):
    """A guest with two disks in files of one name."""
    disks = [Disk(os.path.join(folder, part, "disk.qcow2")) for part in ("a", "b")]
    for disk in disks:
        os.makedirs(os.path.dirname(disk.path))
        disk.make("16M")
    guest = StandIn(name, os.path.join(rig.folder, name), disks, rig.qemu_versions()[0].program("qemu-system-x86_64"))
    guest.start(paused=True)
    return guest


def _words(rig, repo, command):
    return [rig.qdelta_program, "backup", "--repo", repo, "--freeze-max", "60000", "--snapshot-command",
            os.path.realpath(os.path.join(COMMANDS, command)), "--domain"]


def _beside_each_other(rig, guests, words, env, shared):
    web, db = guests
    for ending in (signal.SIGCONT, signal.SIGKILL):
        process, made = stopped_in_its_middle([*words, web.name], env, lambda: _files(shared))
        _ended(subprocess.run([*words, db.name], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False))
        if _files(shared) != made:
            raise Failure(f"of {made}, db's backup has left {_files(shared)}")
        process.send_signal(ending)
        said = process.communicate(timeout=PATIENCE_SECONDS)[0]
        if ending == signal.SIGCONT and process.returncode != 0:
            raise Failure(f"web's backup ended with {process.returncode}:\n{said}")
    rig.qdelta(*words[1:], web.name, env=env)
    for guest in guests:
        home.expect_at_home(guest, repositories=1, checkpoints=1)
    if os.listdir(shared):
        raise Failure(f"in {shared} there is left {os.listdir(shared)}")


def stopped_in_its_middle(words, env, made):
    """A backup that is stopped (SIGSTOP) when its command has made something; gives its process, and what was made."""
    process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    wait_for("the moment of a backup", lambda: made() or process.poll() is not None, PATIENCE_SECONDS, pause=0.005)
    process.send_signal(signal.SIGSTOP)
    # What its command is at, it goes on with.
    wait_for("the command to end", lambda: not command_under(process.pid), PATIENCE_SECONDS)
    found = made()
    if not found or process.poll() is not None:
        process.kill()
        raise Failure(f"a backup was to be stopped in its middle, with {found}, and said: {process.communicate()[0]}")
    return process, found


def _ended(done):
    if done.returncode != 0:
        raise Failure(f"db's backup ended with {done.returncode}:\n{done.stdout}")


def _files(folder):
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
