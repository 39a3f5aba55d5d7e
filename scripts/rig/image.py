"""Builds the guest: a cloud kernel, and an initramfs of busybox, the agent and the workload."""

import glob
import os
import shutil
import subprocess

from .run import Failure, output, run

HERE = os.path.dirname(os.path.abspath(__file__))
# In the order in which they are loaded. ext4 is built into the kernel.
MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "virtio_blk", "virtio_console"]
# Beside the kernel.
PARTS = ["busybox-static", "qemu-guest-agent", "ovmf"]


class GuestImage:
    """The kernel, the initramfs and the firmware that every guest of the rig boots."""

    def __init__(self, folder):
        self.kernel = os.path.join(folder, "vmlinuz")
        self.initramfs = os.path.join(folder, "initramfs")
        self.firmware = os.path.join(folder, "parts/usr/share/OVMF")
        self.folder = folder

    def build(self, packages):
        """Builds what is not there yet; the initramfs always, it has this tree's files in it."""
        os.makedirs(self.folder, exist_ok=True)
        parts = os.path.join(self.folder, "parts")
        complete = os.path.join(parts, "complete")
        if _read(complete) != " ".join(PARTS):
            shutil.rmtree(parts, ignore_errors=True)
            os.makedirs(parts)
            kernels = [name for name in packages.dependencies("linux-image-cloud-amd64")
                       if name.startswith("linux-image-")]
            for package in (*kernels, *PARTS):
                print(f"Unpacking {package}", flush=True)
                packages.unpack(package, parts)
            with open(complete, "w", encoding="utf-8") as file:
                file.write(" ".join(PARTS))
        # Guests of another run may be reading the old ones.
        shutil.copyfile(only(parts, "boot/vmlinuz-*"), self.kernel + ".new")
        os.replace(self.kernel + ".new", self.kernel)
        self._build_initramfs(parts)
        packages.unpack_other_qemu(os.path.join(self.folder, "qemu"))

    def _build_initramfs(self, parts):
        root = os.path.join(self.folder, "root")
        shutil.rmtree(root, ignore_errors=True)
        for folder in ("bin", "dev", "proc", "sys", "mnt", "modules"):
            os.makedirs(os.path.join(root, folder))
        shutil.copy(only(parts, "bin/busybox"), os.path.join(root, "bin/busybox"))
        shutil.copy(os.path.join(HERE, "guest-init"), os.path.join(root, "init"))
        run("gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o",
            os.path.join(root, "bin/workload"), os.path.join(HERE, "workload.c"))
        self._copy_agent(only(parts, "usr/sbin/qemu-ga"), root)
        for module in MODULES:
            found = only(parts, f"lib/modules/*/kernel/**/{module}.ko")
            shutil.copy(found, os.path.join(root, "modules"))
        with open(os.path.join(root, "modules/order"), "w", encoding="utf-8") as file:
            file.writelines(f"{module}.ko\n" for module in MODULES)
        # Unpacking a gzip costs an emulated processor more than reading it plain.
        with open(self.initramfs + ".new", "wb") as file:
            names = output("find", ".", cwd=root)
            subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, check=True,
                           input=names.encode(), stdout=file)
        os.replace(self.initramfs + ".new", self.initramfs)

    @staticmethod
    def _copy_agent(agent, root):
        """The agent, and the libraries that it is linked with, where its loader looks for them."""
        shutil.copy(agent, os.path.join(root, "bin/qemu-ga"))
        for line in output("ldd", agent).splitlines():
            if "not found" in line:
                raise Failure(f"the guest agent needs a library that is not here: {line.strip()}")
            path = next((word for word in line.split() if word.startswith("/")), None)
            if path:
                os.makedirs(root + os.path.dirname(path), exist_ok=True)
                shutil.copy(path, root + path)


def _read(path):
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read()


def only(folder, pattern):
    found = glob.glob(os.path.join(folder, pattern), recursive=True)
    if len(found) != 1:
        raise Failure(f"{len(found)} files match {pattern} below {folder}, not one")
    return found[0]
