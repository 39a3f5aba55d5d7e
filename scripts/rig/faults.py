"""Programs that are killed, and a virsh that misbehaves: a program that stands before the real one.

This virsh is found first on the path. It reads what to do from a file, for each of domfsfreeze and
domfsthaw, as a list of words, one for each call; the last one holds for all later calls. What it
was called with goes to a log.

    ok          does as the real one
    hang        never returns, and does nothing
    after       does as the real one, and never returns
    fail        does nothing, and fails
    wait        does as the real one, then waits until a file `go` is there
"""

import collections
import os
import shutil
import signal
import stat
import subprocess

from .run import PATIENCE_SECONDS, Failure, run

SCRIPT = """#!/bin/bash
# Stands before the real virsh.
folder={folder}
command=other
for word in "$@"; do
    case $word in domfsfreeze | domfsthaw) command=$word ;; esac
done
echo "$(date +%s.%N) $*" >>"$folder/log"
[ $command = other ] && exec {virsh} "$@"
# The next word of the plan; the last one stays.
plan=$folder/$command
read -r word rest <"$plan"
if [ -n "$rest" ]; then
    # Whoever reads it at the same time finds one of the two, and no empty one.
    echo "$rest" >"$plan.$$" && mv "$plan.$$" "$plan"
fi
case $word in
hang) exec sleep 100000 ;;
fail) echo "error: this virsh was told to fail" >&2 && exit 1 ;;
after) {virsh} "$@" && exec sleep 100000 ;;
wait)
    {virsh} "$@" || exit
    touch "$folder/done"
    while [ ! -e "$folder/go" ]; do sleep 0.01; done
    ;;
*) exec {virsh} "$@" ;;
esac
"""


class BadVirsh:
    """A folder for the path, with a virsh in it."""

    def __init__(self, folder, freeze="ok", thaw="ok"):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        virsh = shutil.which("virsh")
        program = os.path.join(folder, "virsh")
        with open(program, "w", encoding="utf-8") as file:
            file.write(SCRIPT.format(folder=folder, virsh=virsh))
        os.chmod(program, os.stat(program).st_mode | stat.S_IXUSR)
        for name, plan in (("domfsfreeze", freeze), ("domfsthaw", thaw)):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(plan + "\n")

    def environment(self):
        return {"PATH": f"{self.folder}:{os.environ['PATH']}"}

    def calls(self, command):
        """How often it was called with a command."""
        try:
            with open(os.path.join(self.folder, "log"), encoding="utf-8") as file:
                return sum(command in line.split() for line in file)
        except FileNotFoundError:
            return 0

    def is_done(self):
        return os.path.exists(os.path.join(self.folder, "done"))

    def go(self):
        with open(os.path.join(self.folder, "go"), "w", encoding="utf-8"):
            pass


def killed_after(process, seconds):
    """Kills a program after so long; whether the kill met it, and did not come after its end."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode == -signal.SIGKILL


def count_calls(rig, path, arguments):
    """How often a thread of qdelta writes to a file, and syncs it, undisturbed: the most of any."""
    log = os.path.join(rig.scratch, "calls")
    done = _traced(rig, path, arguments, "-o", log)
    if done.returncode != 0:
        raise Failure(f"status {done.returncode}: qdelta {' '.join(arguments)}\n{done.stdout}")
    with open(log, encoding="utf-8", errors="replace") as file:
        # A thread, then its call.
        each = collections.Counter((line.split()[0], line.split()[1].split("(")[0])
                                   for line in file)
    most = collections.Counter()
    for (_, call), count in each.items():
        most[call] = max(most[call], count)
    return most


def killed_at_call(rig, path, arguments, call, number):
    """Kills qdelta when one of its threads is about to make its n-th call (from 1) on a file."""
    done = _traced(rig, path, arguments, "-o", os.devnull,
                   "-e", f"inject={call}:signal=KILL:when={number}")
    if done.returncode != -signal.SIGKILL:
        raise Failure(f"status {done.returncode} of a program that was to be killed at {call} "
                      f"number {number} on {path}:\n{done.stdout}")


def _traced(rig, path, arguments, *options):
    """qdelta under strace, with as few threads as can be: each run divides the calls alike."""
    return run("strace", "-f", "-qq", "-P", path, "-e", "trace=pwrite64,fsync", *options, "--",
               rig.qdelta_program, *arguments, "--threads", "1", check=False, env=rig.environment())
