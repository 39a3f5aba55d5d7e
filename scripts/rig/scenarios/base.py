"""What every scenario works with: file systems, guests, qdelta, and a place to report figures."""

import json
import os
import random
import shutil
import subprocess
import time

from ..guest import Disk, Guest
from ..qemu import Qemu
from ..run import PATIENCE_SECONDS, Failure, run
from ..sandbox import HostFilesystem


class Rig:
    """The means of one scenario; `close` takes back all that it gave out."""

    def __init__(self, folder, image, qdelta, effort, strict=False, libvirt=None):
        self.folder = folder
        self.image = image
        self.qdelta_program = qdelta
        self.effort = effort
        self.strict = strict
        self.libvirt = libvirt
        self.scratch = os.path.join(folder, "scratch")
        os.makedirs(self.scratch)
        self._filesystems = []
        self._guests = []
        self.servers = []

    def say(self, text):
        print(f"   {text}", flush=True)

    def promised(self, what, value, limit, unit):
        """Shows a measured value beside its limit; only a strict run fails for it."""
        kept = value <= limit
        self.say(f"{what}: {value:.4g} {unit}, promised {limit:.4g}{'' if kept else ': MISSED'}")
        if self.strict and not kept:
            raise Failure(f"{what}: {value:.4g} {unit}, not {limit:.4g}")

    def random(self):
        """Other numbers each time; those of a failure come again with QDELTA_SEED."""
        seed = int(os.environ.get("QDELTA_SEED", time.time_ns() % 1_000_000))
        self.say(f"seed {seed}")
        return random.Random(seed)

    def filesystem(self, kind, **options):
        filesystem = HostFilesystem(kind, self.folder, **options)
        self._filesystems.append(filesystem)
        return filesystem

    def guest(self, name, disks, start=True, **options):
        """Defines a guest, and starts it."""
        guest = Guest(name, os.path.join(self.folder, "guests", name), self.image, disks, **options)
        self._guests.append(guest)
        guest.define()
        return guest.start() if start else guest

    def adopt(self, name, disks, folder):
        """A guest whose domain others have defined."""
        guest = Guest(name, folder, self.image, disks)
        self._guests.append(guest)
        return guest

    def two_disks(self, folder, size="192M", cache="none", chain=False):
        """Two disks with an empty ext4 each; as a chain, the second has a backing file."""
        system, data = (os.path.join(folder, name) for name in ("system.qcow2", "data.qcow2"))
        base = os.path.join(folder, "base.qcow2") if chain else None
        return [Disk(system, cache=cache).make(size), Disk(data, cache=cache).make(size, base)]

    def qemu_versions(self):
        """The installed QEMU, and another version of it."""
        installed = os.path.dirname(shutil.which("qemu-img"))
        return [Qemu(installed), Qemu(os.path.join(self.image.folder, "qemu/usr/bin"))]

    @staticmethod
    def environment(**more):
        return dict(os.environ, **{"LIBVIRT_DEFAULT_URI": "qemu:///system", **more})

    def qdelta(self, *arguments, check=True, timeout=4 * PATIENCE_SECONDS, env=None):
        """Runs qdelta; gives its result, parsed where it is JSON."""
        command = [self.qdelta_program, *map(os.fspath, arguments)]
        try:
            done = subprocess.run(command, text=True, stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=timeout, env=self.environment(**(env or {})), check=False)
        except subprocess.TimeoutExpired as expired:
            raise Failure(f"after {timeout} s not done: {' '.join(command)}") from expired
        if check and done.returncode != 0:
            raise Failure(f"status {done.returncode}: qdelta {' '.join(map(str, arguments))}\n"
                          f"{done.stdout}{done.stderr}")
        return done

    def qdelta_json(self, *arguments, **options):
        done = self.qdelta("--json", *arguments, **options)
        return json.loads(done.stdout)

    def tell_more(self):
        """After a failure: the ends of the logs."""
        logs = [os.path.join(guest.folder, "console") for guest in self._guests]
        logs += [f"/var/log/libvirt/qemu/{guest.name}.log" for guest in self._guests]
        logs.append(os.path.join(os.path.dirname(self.folder), "libvirtd.log"))
        for log in logs:
            if os.path.exists(log):
                print(f"   the end of {log}:\n{run('tail', '-n', '8', log).stdout}", flush=True)

    def close(self):
        for guest in self._guests:
            guest.forget()
        for server in self.servers:
            server.kill()
        for filesystem in self._filesystems:
            filesystem.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def expect_failure(what, words, action):
    """The action must fail, with these words: a check that can't fail proves nothing."""
    try:
        action()
    except Failure as failure:
        if words not in str(failure):
            raise Failure(f"{what} was noticed, but for another reason: {failure}") from failure
        return
    raise Failure(f"{what} was not noticed")
