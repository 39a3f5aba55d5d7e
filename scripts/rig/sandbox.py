"""A place of its own for everything that the rig starts and mounts.

The rig runs itself again as the first process of new mount, process and network namespaces. When
that process ends, however it ends, the kernel ends all others in there (libvirtd, the guests,
qdelta's watchdogs) and undoes every mount. libvirt's folders are empty ones in memory, so that the
machine's own libvirt, if it has one, is neither used nor disturbed.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from .run import PATIENCE_SECONDS, Failure, output, run, wait_for

PRIVATE = ["/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"]
ACCOUNTS = {"/etc/passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
            "/etc/group": "libvirt-qemu:x:64055:\n"}
INSIDE = "QDELTA_RIG_FOLDER"
PREFIX = "qdelta-e2e-"
PR_SET_PDEATHSIG = 1


def run_inside(arguments):
    """Runs this program again inside; gives its exit status. Its folder is removed afterwards."""
    if os.geteuid() != 0:
        raise Failure("a guest with loop-mounted file systems needs root")
    _remove_leftovers()
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
    command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
               "--mount-proc", "--net", sys.executable, "-B", *arguments]
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        inside = subprocess.Popen(
            command, env=dict(os.environ, **{INSIDE: folder}),
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            return inside.wait()
        finally:
            # --kill-child: the first process inside goes with unshare, and all others with it.
            inside.kill()
            inside.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers():
    """What a run left that was killed before it could clean up: files, nothing else is possible."""
    for name in os.listdir(tempfile.gettempdir()):
        process = name.removeprefix(PREFIX).split("-")[0]
        if name.startswith(PREFIX) and not os.path.exists(f"/proc/{process}"):
            shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)


def folder_inside():
    """The rig's folder, where this process is inside; nothing elsewhere."""
    return os.environ.get(INSIDE)


def enter():
    """Becomes the second process inside: the first does nothing but take in what others leave."""
    child = os.fork()
    if child != 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            ended, status = os.wait()
            if ended == child:
                os._exit(abs(os.waitstatus_to_exitcode(status)))
    # Sockets and pid files of libvirt's go to /run.
    run("mount", "-t", "tmpfs", "-o", "mode=755", "rig", "/run")
    for path in PRIVATE:
        os.makedirs(path, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "mode=755", "rig", path)
    for name, line in ACCOUNTS.items():
        _add_account(name, line)


def _add_account(file, line):
    """libvirtd asks for accounts that a package of services makes; in here they are there."""
    with open(file, encoding="utf-8") as source:
        text = source.read()
    copy = os.path.join("/run", os.path.basename(file))
    with open(copy, "w", encoding="utf-8") as target:
        target.write(text if "\nlibvirt-qemu:" in text else text + line)
    run("mount", "--bind", copy, file)


class HostFilesystem:
    """A file system of the host's, in a sparse file, on a loop device."""

    # Without a discard, mkfs leaves the sparse file sparse all the same.
    MAKE = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}

    def __init__(self, kind, folder, name=None, size="6G", options=""):
        self.kind = kind
        self.file = os.path.join(folder, f"{name or kind}.host")
        self.mount = os.path.join(folder, name or kind)
        os.makedirs(self.mount)
        run("truncate", "-s", size, self.file)
        run(*self.MAKE[kind], self.file)
        run("mount", "-o", ",".join(filter(None, ["loop", options])), self.file, self.mount)

    def defragment(self, files):
        """Moves what files hold to other places; what they hold stays as it is. Gives how many were."""
        moved = 0
        for file in files:
            before = output("filefrag", "-v", file)
            if self.kind == "btrfs":
                run("btrfs", "filesystem", "defragment", "-f", file)
            else:
                # Gives up by itself where the file is written to meanwhile.
                run("xfs_fsr", file, check=False)
            moved += output("filefrag", "-v", file) != before
        return moved

    def close(self):
        if os.path.exists(self.file):
            # The kernel lets go of the files of a process that was killed a moment after it.
            wait_for(f"{self.mount} to be let go",
                     lambda: run("umount", self.mount, check=False).returncode == 0,
                     PATIENCE_SECONDS, pause=0.1)
            os.remove(self.file)
