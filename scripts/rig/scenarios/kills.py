"""Whatever happens to qdelta, to virsh or to the agent: the guest is thawed."""

import os
import signal
import subprocess
import time

from ..faults import BadVirsh, killed_after
from ..points import FREEZE_MAX, Chain
from ..run import PATIENCE_SECONDS, Failure, wait_for

KILLS = 5
# How soon a guest is thawed is reported, and no failure: on a machine with other work a test must
# not hang on tenths of a second.
DEADLINE_SECONDS = 5
# How often something is tried that has to come in time, before it is said that it never does.
TRIES = 5


def kills(rig):
    """qdelta is killed at random moments; the guest is thawed and goes on, and points stay whole."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("killed", rig.two_disks(xfs.mount))
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    chain.backup()
    rng, whole = rig.random(), _time_of_a_backup(rig, guest, chain)
    rig.say(f"a whole backup takes {whole:.1f} s")
    gaps, frozen, late, wanted = [], 0, 0, KILLS * rig.effort
    while len(gaps) < wanted:
        guest.wait_for_records(10)
        since = guest.records_size()
        virsh_seen = BadVirsh(os.path.join(rig.folder, "bad"))
        begin = time.monotonic()
        process = start_backup(rig, guest, chain, **virsh_seen.environment())
        # The freeze is in the first half, so that is where most kills go.
        if killed_after(process, rng.uniform(0, whole * rng.choice([0.3, 0.6, 1.0]))):
            gaps.append(goes_on(guest, since))
            frozen += virsh_seen.calls("domfsfreeze") > 0
            continue
        late += 1
        if process.returncode == 0:
            # The machine was slower when the time was taken.
            whole = min(whole, time.monotonic() - begin)
        if late > TRIES * wanted:
            raise Failure(f"{late} kills found no backup any more, the last with status "
                          f"{process.returncode}")
    rig.say(f"{len(gaps)} kills, {frozen} of them behind the order to freeze; {late} more "
            "came too late")
    rig.promised("the longest time that the guest stood still", max(gaps) / 1000,
                 DEADLINE_SECONDS + 1, "s")
    _killed_within_the_freeze(rig, guest, chain)
    point = chain.backup()
    guest.pause()
    for point in (chain.points[0], point):
        rig.say(f"{point.time} is whole up to record {chain.check(point)}")
    rig.qdelta("verify", "--repo", chain.repo)


def _time_of_a_backup(rig, guest, chain):
    begin = time.monotonic()
    process = start_backup(rig, guest, chain, *FREEZE_MAX)
    said = process.communicate(timeout=PATIENCE_SECONDS)[0]
    if process.returncode != 0:
        raise Failure(f"status {process.returncode} of a backup that nobody disturbed:\n{said}")
    return time.monotonic() - begin


def _killed_within_the_freeze(rig, guest, chain):
    """Either of qdelta and its watchdog thaws for the other; for both, the next run does."""
    for victims in (["backup"], ["watchdog"], ["watchdog", "backup"]):
        bad = BadVirsh(os.path.join(rig.folder, "bad"), freeze="wait")
        since = guest.records_size()
        # Longer than anybody waits here: only a death can end this freeze.
        process = start_backup(rig, guest, chain, "--freeze-max", "600000", **bad.environment())
        wait_for("the freeze", bad.is_done, PATIENCE_SECONDS)
        processes = {"watchdog": _process_of(rig.qdelta_program, "watchdog"), "backup": process.pid}
        # One must not act on the other's death before its own.
        for pid in processes.values():
            stop(pid)
        if bad.calls("domfsthaw") > 0:
            raise Failure("somebody thawed before anything was killed")
        for victim in victims:
            os.kill(processes.pop(victim), signal.SIGKILL)
        for pid in processes.values():
            os.kill(pid, signal.SIGCONT)
        bad.go()
        said = process.communicate(timeout=PATIENCE_SECONDS)[0]
        if process.returncode == 0:
            raise Failure(f"a point was made though {victims} was killed in the freeze:\n{said}")
        if "backup" in victims and process.returncode != -signal.SIGKILL:
            raise Failure(f"qdelta ended by itself, with status {process.returncode}:\n{said}")
        if len(victims) == 2:
            status = guest.freeze_status()
            if status != "frozen":
                raise Failure(f"nobody was left to thaw the guest, and it is {status}")
            chain.backup()
        gap = goes_on(guest, since)
        rig.say(f"{' and '.join(victims)} killed in the freeze: the guest stood still for "
                f"{gap:.0f} ms{', until the next run' if len(victims) == 2 else ''}")


def stop(pid):
    """Stops a process, and waits until it does nothing more."""
    os.kill(pid, signal.SIGSTOP)

    def is_stopped():
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    wait_for(f"process {pid} to stop", is_stopped, PATIENCE_SECONDS)


def _process_of(program, command):
    """The process that runs a command of qdelta's."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            running = os.readlink(f"/proc/{process}/exe")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if running == os.path.realpath(program) and command.encode() in words:
            return int(process)
    raise Failure(f"no process runs qdelta {command}")


def virsh(rig):
    """virsh hangs, fails, or does what it was told and never returns: the guest is thawed."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("hanging", rig.two_disks(xfs.mount))
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    chain.backup()
    # What virsh does, and whether a point may come of it.
    for freeze, thaw, good in [
            ("hang", "ok", False),
            ("after", "ok", False),
            ("fail", "ok", False),
            ("ok", "fail fail ok", True),
            ("ok", "hang ok", True),
            ("ok", "after ok", True),
            ("after", "hang hang ok", False),
            ("after", "fail hang ok", False)]:
        bad = BadVirsh(os.path.join(rig.folder, "bad"), freeze, thaw)
        since, begin = guest.records_size(), time.monotonic()
        done = rig.qdelta("backup", "--domain", guest.name, "--repo", chain.repo, check=False,
                          env=bad.environment())
        took = time.monotonic() - begin
        gap = goes_on(guest, since)
        rig.say(f"freeze: {freeze:<6} thaw: {thaw:<14} status {done.returncode} after {took:4.1f} s, "
                f"{bad.calls('domfsthaw')} calls to thaw, the guest stood still for {gap:5.0f} ms")
        rig.promised("   that is", gap / 1000, DEADLINE_SECONDS + 1, "s")
        if bad.calls("domfsfreeze") == 0 or bad.calls("domfsthaw") == 0:
            raise Failure("virsh was not asked to freeze and to thaw")
        if done.returncode == 0 and not good:
            raise Failure("a freeze that did not succeed made a point all the same")
    point = chain.backup()
    guest.pause()
    rig.say(f"{point.time} is whole up to record {chain.check(point)}")


def agent(rig):
    """The agent goes away before the freeze, or within it, and comes back: the guest is thawed."""
    xfs = rig.filesystem("xfs")
    guest = rig.guest("agent", rig.two_disks(xfs.mount))
    chain = Chain(rig, guest)
    guest.wait_for_records(100)
    chain.backup()
    _killed_while_frozen(rig, guest, chain)
    _stopped_before_the_freeze(rig, guest, chain)
    point = chain.backup()
    guest.pause()
    rig.say(f"{point.time} is whole up to record {chain.check(point)}")


def _killed_while_frozen(rig, guest, chain):
    """The service manager starts the agent again; the new one knows that it has frozen."""
    for pause in (1, 7):
        guest.order(f"echo {pause} >/run/agent-pause")
        for _ in range(TRIES):
            bad = BadVirsh(os.path.join(rig.folder, "bad"), freeze="wait")
            since = guest.records_size()
            process = start_backup(rig, guest, chain, **bad.environment())
            wait_for("the freeze", lambda: bad.is_done() or process.poll() is not None,
                     PATIENCE_SECONDS)
            guest.order("kill -9 $(pidof qemu-ga)")
            # On a slow machine the limit of the freeze can have passed before.
            in_time = bad.is_done() and bad.calls("domfsthaw") == 0
            bad.go()
            said = process.communicate(timeout=PATIENCE_SECONDS)[0]
            if in_time:
                break
            goes_on(guest, since)
        else:
            raise Failure(f"{TRIES} times the agent was killed only when the freeze was over")
        gap = goes_on(guest, since)
        rig.say(f"the agent was gone for {pause} s within the freeze: status {process.returncode}, "
                f"the guest stood still for {gap:.0f} ms")
        # The new agent takes a second itself.
        rig.promised("   that is", gap / 1000, max(DEADLINE_SECONDS, pause + 1) + 1, "s")
        if process.returncode == 0 and gap > 10_000:
            raise Failure(f"a freeze of {gap:.0f} ms gave a point without a word:\n{said}")
    guest.order("echo 1 >/run/agent-pause")


def _stopped_before_the_freeze(rig, guest, chain):
    """The agent does not answer, and finds the order to freeze long after the deadline."""
    bad = BadVirsh(os.path.join(rig.folder, "bad"))
    guest.order("kill -STOP $(pidof qemu-ga)")
    since = guest.records_size()
    process = start_backup(rig, guest, chain, **bad.environment())
    wait_for("the freeze to be given up",
             lambda: bad.calls("domfsthaw") > 0 or process.poll() is not None, PATIENCE_SECONDS)
    guest.order("kill -CONT $(pidof qemu-ga)")
    said = process.communicate(timeout=PATIENCE_SECONDS)[0]
    if bad.calls("domfsfreeze") == 0 or bad.calls("domfsthaw") == 0:
        raise Failure(f"nobody tried to freeze, and to thaw what may be frozen:\n{said}")
    if process.returncode == 0:
        raise Failure(f"a guest whose agent did not answer was backed up as if it had:\n{said}")
    gap = goes_on(guest, since)
    rig.say(f"the agent did not answer until after the deadline: status {process.returncode}; after "
            f"its return the guest stood still for {gap:.0f} ms")
    rig.promised("   that is", gap / 1000, 1, "s")


def start_backup(rig, guest, chain, *flags, **environment):
    return subprocess.Popen(
        [rig.qdelta_program, "backup", "--domain", guest.name, "--repo", chain.repo, *flags],
        env=rig.environment(**environment), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def goes_on(guest, since):
    """Waits until the guest is thawed and writes; gives the longest gap since, in ms."""
    wait_for(f"{guest.name} to be thawed", guest.is_thawed, PATIENCE_SECONDS, pause=0.1)
    guest.wait_for_records(5)
    # Whoever still has an order to freeze on its way would carry it out now.
    time.sleep(0.5)
    wait_for(f"{guest.name} to stay thawed", guest.is_thawed, PATIENCE_SECONDS, pause=0.1)
    guest.wait_for_records(5)
    return guest.longest_gap_ms(since)
