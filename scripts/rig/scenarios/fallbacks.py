"""Guests that can't be frozen, and backups that are stopped."""

import os
import signal
import subprocess
import time

from ..home import OVERLAY
from ..libvirt import virsh
from ..points import FREEZE_MAX, Chain
from ..run import PATIENCE_SECONDS, Failure, wait_for
from .kills import start_backup
from .peers import COMMANDS, forget_checkpoints

STOPS = 6

JOBS = """timer = "none"
journal = false
[repositories.local]
place = "{repo}"
[jobs.all]
repository = "local"
guests = ["{guest}"]
consistency = "quiesced-or-crash"
snapshot_command = "{command}"
freeze_max = "60s"
"""


def fallbacks(rig):
    """The agent of a guest is gone: by rule its job makes points that say that they are not as asked for."""
    guest = rig.guest("by rule", rig.two_disks(rig.filesystem("ext4").mount))
    chain = Chain(rig, guest)
    jobs = os.path.join(rig.folder, "qdelta.toml")
    command = os.path.realpath(os.path.join(COMMANDS, "external-snapshot"))
    with open(jobs, "w", encoding="utf-8") as file:
        file.write(JOBS.format(repo=chain.repo, guest=guest.name, command=command))
    env = {"QDELTA_CONFIG": jobs, "XDG_STATE_HOME": rig.folder, "STATE_DIRECTORY": rig.folder}
    guest.wait_for_records(50)
    rig.qdelta("run", "all", env=env)
    said = rig.qdelta("history", env=env).stdout
    if "not as asked for" in said or "filesystem-quiesced" not in said:
        raise Failure(f"a guest with an agent was not frozen:\n{said}")
    # The service manager would start it again.
    guest.order("echo 3600 >/run/agent-pause")
    guest.end("qemu-ga")
    wait_for("libvirt to know that the agent is gone", lambda: not guest.agent_is_connected(), PATIENCE_SECONDS)
    rig.qdelta("run", "all", env=env)
    said = rig.qdelta("history", env=env).stdout
    listed = rig.qdelta("points", f"{guest.name}/vda", "--repo", chain.repo).stdout
    for words, text in (("not as asked for", said), ("crash-consistent, not as asked for", listed)):
        if words not in text:
            raise Failure(f"nobody is told that the point is not as asked for:\n{text}")
    status = rig.qdelta("status", env=env, check=False).stdout
    if "no guest agent runs" not in status:
        raise Failure(f"status says nothing of it:\n{status}")
    for text in (said, status):
        rig.say(next(line for line in text.splitlines() if guest.name in line and "quiesced (" not in line))
    guest.pause()
    rig.qdelta("verify", "--repo", chain.repo)


def stops(rig):
    """qdelta is asked to stop at random moments: when it has ended, the guest is on its images, without a next run."""
    folder = rig.filesystem("ext4").mount
    guest = rig.guest("stopped short", rig.two_disks(folder))
    chain, rng, ended = Chain(rig, guest), rig.random(), {}
    guest.wait_for_records(20)
    begin = time.monotonic()
    chain.backup("--snapshot-command", os.path.realpath(os.path.join(COMMANDS, "external-snapshot")))
    # From the beginning of a backup to its end, whatever the machine does beside.
    seconds = time.monotonic() - begin
    for number in range(STOPS * rig.effort):
        command = ("external-snapshot", "qemu-bitmap")[number % 2]
        process = start_backup(rig, guest, chain, "--snapshot-command",
                               os.path.realpath(os.path.join(COMMANDS, command)), *FREEZE_MAX)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE_SECONDS)[0]
        ended[process.returncode] = ended.get(process.returncode, 0) + 1
        text = virsh("dumpxml", guest.name).stdout + virsh("dumpxml", guest.name, "--inactive").stdout
        job = virsh("backup-dumpxml", guest.name, check=False, stderr=subprocess.DEVNULL).stdout
        left = set(os.listdir(folder)) - {"lost+found", "system.qcow2", "data.qcow2"}
        if process.returncode not in (0, 130, 143) or OVERLAY.search(text) or job.strip() or left:
            raise Failure(f"stopped short, {command} ended with {process.returncode} and left {left} {job}:\n{said}")
        if not guest.is_thawed():
            raise Failure(f"stopped short, {command} left the guest frozen:\n{said}")
    rig.say(f"by exit status: {ended}")
    guest.pause()
    rig.qdelta("verify", "--repo", chain.repo)
    forget_checkpoints(guest)
