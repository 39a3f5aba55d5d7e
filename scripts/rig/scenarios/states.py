"""Guests in every state, and host file systems that can't clone."""

import os
import signal
import stat

from ..faults import BadVirsh
from ..points import Chain
from ..run import PATIENCE_SECONDS, Failure, wait_for
from .kills import goes_on, start_backup, stop

# The admin's own storage makes the moment: here a plain copy, which is quick for a small image.
SNAPSHOT_COMMAND = """#!/bin/sh
# Called as `COMMAND create FILE`, it prints the path to read; then as `COMMAND release FILE PATH`.
# A command of the first version has nothing to say to `check`.
case $1 in
check) ;;
create) cp --sparse=always "$2" "$2.moment" && echo "$2.moment" ;;
release) rm "$3" ;;
*) exit 2 ;;
esac
"""


def states(rig):
    """Running, paused, powered off and cut off; with an agent and without one (XFS)."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("states", rig.two_disks(xfs.mount))
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    _point(rig, chain, "running", "filesystem-quiesced")

    guest.pause()
    point = _point(rig, chain, "paused", "crash-consistent")
    if guest.state() != "paused":
        raise Failure(f"a paused guest is {guest.state()} after its backup")
    if not any("paused" in warning["text"] for warning in point.result["warnings"]):
        raise Failure(f"nothing warns of a guest that could not be frozen: {point.result}")
    guest.resume()

    guest.order("echo 1000 >/run/agent-pause")
    guest.end("qemu-ga")
    wait_for("libvirt to notice", lambda: not guest.agent_is_connected(), PATIENCE_SECONDS)
    since = guest.records_size()
    chain.refused(words=["--consistency"])
    _point(rig, chain, "running without an agent", "crash-consistent", "--consistency", "crash")
    guest.order("echo 1 >/run/agent-pause; killall sleep")
    wait_for("the agent to come back", guest.agent_answers, PATIENCE_SECONDS, pause=0.2)
    goes_on(guest, since)

    guest.power_off()
    _point(rig, chain, "powered off", "offline")
    guest.start()
    guest.wait_for_records(100)
    guest.kill()
    _point(rig, chain, "cut off", "offline")
    for point in chain.points:
        rig.say(f"{point.state}: {point.consistency}, whole up to record {chain.check(point)}")


def ext4(rig):
    """No clones: refused with the choices named; copied in the freeze, or by the admin's command."""
    filesystem = rig.filesystem("ext4")
    guest = rig.guest("on-ext4", rig.two_disks(filesystem.mount))
    chain = Chain(rig, guest)
    guest.wait_for_records(100)

    since = guest.records_size()
    chain.refused(words=["freeze-copy", "snapshot-command", "XFS", "Btrfs"])
    rig.promised("a refusal: the guest stood still for", goes_on(guest, since), 500, "ms")

    _point(rig, chain, "copied in the freeze", "filesystem-quiesced",
           "--consistency", "freeze-copy", "--freeze-max", "30000")
    _copy_takes_too_long(rig, guest, chain)

    program = os.path.join(rig.folder, "snapshot-command")
    with open(program, "w", encoding="utf-8") as file:
        file.write(SNAPSHOT_COMMAND)
    os.chmod(program, os.stat(program).st_mode | stat.S_IXUSR)
    _point(rig, chain, "by the admin's command", "filesystem-quiesced",
           "--snapshot-command", program)
    left = [name for name in os.listdir(filesystem.mount) if name.endswith(".moment")]
    if left:
        raise Failure(f"the snapshot was not released: {left}")
    guest.pause()
    for point in chain.points:
        rig.say(f"{point.state}: {point.consistency}, whole up to record {chain.check(point)}; "
                f"{point.stood_still()}")


def _copy_takes_too_long(rig, guest, chain):
    """qdelta does not get on within the freeze: the guest is thawed at the limit, without a point."""
    bad = BadVirsh(os.path.join(rig.folder, "bad"), freeze="wait")
    since = guest.records_size()
    process = start_backup(rig, guest, chain, "--consistency", "freeze-copy", "--freeze-max", "10000",
                           "--kind", "full", **bad.environment())
    wait_for("the freeze", lambda: bad.is_done() or process.poll() is not None, PATIENCE_SECONDS)
    if process.poll() is None:
        stop(process.pid)
        bad.go()
        wait_for("the thaw at the limit", lambda: bad.calls("domfsthaw") > 0, PATIENCE_SECONDS)
        os.kill(process.pid, signal.SIGCONT)
    said = process.communicate(timeout=PATIENCE_SECONDS)[0]
    # A freeze that failed would advise other things.
    if process.returncode == 0 or "--freeze-max" not in said:
        raise Failure(f"a copy of more than 10 s was not given up: status {process.returncode}\n{said}")
    rig.say(f"a copy that takes too long is given up: the guest stood still for "
            f"{goes_on(guest, since):.0f} ms")


def _point(rig, chain, state, consistency, *flags):
    point = chain.backup(*flags)
    point.state = state
    if point.consistency != consistency:
        raise Failure(f"the point of a guest that is {state} is called {point.consistency}: "
                      f"{point.result}")
    chain.guest.wait_if_running()
    return point
