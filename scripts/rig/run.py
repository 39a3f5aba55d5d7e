"""Running programs, and the one way in which the rig fails."""

import os
import subprocess
import time

# What comes at all comes long before this, also on a machine with much other work: only what never
# comes is waited for so long.
PATIENCE_SECONDS = 300


class Failure(Exception):
    """Something is not as it must be: with the rig, or with what it looks at."""


def run(*command, check=True, timeout=4 * PATIENCE_SECONDS, **options):
    """Runs a program to its end; its output is shown only where it fails."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.STDOUT if options["stdout"] == subprocess.PIPE
                       else subprocess.PIPE)
    command = [os.fspath(part) for part in command]
    if "input" in options:
        del options["stdin"]
    try:
        done = subprocess.run(command, text=True, timeout=timeout, check=False,
                              errors="replace", **options)
    except subprocess.TimeoutExpired as expired:
        raise Failure(f"after {timeout} s not done: {' '.join(command)}") from expired
    if check and done.returncode != 0:
        said = (done.stdout or "") + (done.stderr or "")
        raise Failure(f"status {done.returncode}: {' '.join(command)}\n{said.strip()}")
    return done


def output(*command, **options):
    """What a program says on its standard output."""
    options.setdefault("stderr", subprocess.PIPE)
    return run(*command, **options).stdout


def wait_for(what, condition, seconds, pause=0.02):
    """Waits until the condition gives something true, and gives that."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"waited {seconds} s for {what}")
        time.sleep(pause)
