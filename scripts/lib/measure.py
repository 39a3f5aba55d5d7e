"""Runs programs and measures them: time, processor time, peak memory, with their output synced."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QDELTA = os.path.join(TOP, "target", "release", "qdelta")


@dataclass
class Run:
    """What one run of a program cost."""
    output: bytes
    seconds: float
    cpu: float
    memory: float  # peak resident memory, in MiB


# A child's peak memory begins with that of whoever forked it: this small one forks it, and measures.
LAUNCHER = """
import os, sys, time
started = time.monotonic()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.monotonic() - started
with open(sys.argv[1], "w") as file:
    print(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, file=file)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(*command, sync=(), env=None):
    """Runs a command, then syncs the paths in `sync`, which counts. Ends the script if it fails."""
    with tempfile.NamedTemporaryFile("r") as report:
        done = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, report.name, *command],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env={**os.environ, **(env or {})}, check=False)
        if done.returncode != 0:
            sys.stderr.write(done.stderr.decode(errors="replace"))
            sys.exit(f"failed with status {done.returncode}: {' '.join(command)}")
        seconds, cpu, memory = map(float, report.read().split())
    started = time.monotonic()
    for path in sync:
        sync_tree(path)
    return Run(done.stdout, seconds + time.monotonic() - started, cpu, memory)


def files_in(path):
    """The regular files at and below a path."""
    if os.path.isfile(path):
        return [path]
    return [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]


def sync_tree(path):
    """Puts every file at and below a path on stable storage."""
    for name in files_in(path):
        descriptor = os.open(name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def warm(path):
    """Reads every file at and below a path, so that it is in the page cache."""
    for name in files_in(path):
        with open(name, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def chill(path):
    """Drops every file at and below a path from the page cache."""
    sync_tree(path)
    for name in files_in(path):
        descriptor = os.open(name, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def allocated(path):
    """Bytes that the files at and below a path take on disk."""
    return sum(os.stat(name).st_blocks * 512 for name in files_in(path))


def machine():
    """The machine in one line."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return (f"{len(os.sched_getaffinity(0))} cores of {model}, {memory} GiB of memory, "
            f"Linux {platform.release()}")


def first_line(*command):
    """The first line that a program prints, for its version."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    return done.stdout.decode().strip().splitlines()[0]


def build():
    """Builds the program that is measured."""
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=TOP, check=True)


def spread(values):
    """The median, and half the distance of the quartiles as a part of it; of two values nobody
    can tell."""
    median = statistics.median(values)
    if len(values) < 3:
        return median, None
    low, _, high = statistics.quantiles(values, n=4)
    return median, (high - low) / 2 / median
