"""libvirtd, started by hand inside the sandbox."""

import subprocess

from .run import PATIENCE_SECONDS, Failure, run, wait_for

QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
dynamic_ownership = 0
remember_owner = 0
"""
LIBVIRTD_CONF = """
auth_unix_rw = "none"
auth_unix_ro = "none"
"""


class Libvirt:
    """A libvirtd of the rig's own."""

    def __init__(self, folder):
        for name, text in (("qemu.conf", QEMU_CONF), ("libvirtd.conf", LIBVIRTD_CONF)):
            with open(f"/etc/libvirt/{name}", "w", encoding="utf-8") as file:
                file.write(text)
        self._log = open(f"{folder}/libvirtd.log", "w", encoding="utf-8")
        self._daemon = None
        self.start()

    def start(self):
        """Starts it, where it does not run."""
        if self._daemon and self._daemon.poll() is None:
            return
        self._daemon = subprocess.Popen(["libvirtd"], stdin=subprocess.DEVNULL,
                                        stdout=self._log, stderr=self._log)
        wait_for("libvirtd", self._answers, PATIENCE_SECONDS)

    def kill(self):
        """Ends it as the kernel does when memory runs out. The guests run on."""
        self._daemon.kill()
        self._daemon.wait(PATIENCE_SECONDS)

    def forget_job(self, name):
        """Has it let go of a backup job that was never begun, as docs/snapshot-commands.md says."""
        self._daemon.terminate()
        self._daemon.wait(PATIENCE_SECONDS)
        run("sed", "-i", "/<job .*async='backup'/d", state_of(name))
        self.start()

    def _answers(self):
        if self._daemon.poll() is not None:
            raise Failure(f"libvirtd ended at once; see {self._log.name}")
        return virsh("uri", check=False).returncode == 0

    def close(self):
        self._daemon.terminate()
        self._daemon.wait(PATIENCE_SECONDS)
        self._log.close()


def state_of(name):
    """The file in which libvirt notes what a guest that runs is at."""
    return f"/run/libvirt/qemu/{name}.xml"


def virsh(*arguments, **options):
    return run("virsh", "-q", "-c", "qemu:///system", *arguments, **options)
