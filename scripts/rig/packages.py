"""Brings what the rig needs: programs that are missing, and the parts of the guest.

Debian's QEMU of bookworm is 7.2; one that matches an installed qemu-utils of bookworm-backports is
in the backports, too. They are read through package lists of the rig's own: the machine's sources
stay as they are. The guest's kernel, busybox and agent are unpacked, not installed.
"""

import glob
import os
import shutil
import subprocess

from .run import Failure, output, run

# Program -> the Debian packages that bring it. QEMU itself is a case of its own.
PROGRAMS = {
    "libvirtd": ["libvirt-daemon", "libvirt-daemon-driver-qemu"],
    "virtlogd": ["libvirt-daemon"],
    "virsh": ["libvirt-clients"],
    "mkfs.xfs": ["xfsprogs"],
    "xfs_fsr": ["xfsprogs"],
    "mkfs.btrfs": ["btrfs-progs"],
    "mkfs.ext4": ["e2fsprogs"],
    "debugfs": ["e2fsprogs"],
    "e2fsck": ["e2fsprogs"],
    "filefrag": ["e2fsprogs"],
    "mount": ["mount"],
    "losetup": ["mount"],
    "unshare": ["util-linux"],
    "fio": ["fio"],
    "strace": ["strace"],
    "systemd-socket-activate": ["systemd"],
    "gcc": ["gcc", "libc6-dev"],
    "cpio": ["cpio"],
    "xz": ["xz-utils"],
}
# What a single scenario needs besides.
PROGRAMS_OF = {"virtnbdbackup": {"virtnbdbackup": ["virtnbdbackup"]}}
QEMU = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "qemu-io": "qemu-utils"}


class Packages:
    """Debian's packages, as the machine's sources and bookworm-backports have them."""

    def __init__(self, folder):
        self.folder = folder
        self.lists = os.path.join(folder, "lists")
        self.updated = False

    def apt(self, *arguments):
        """Runs apt with the rig's own sources and lists; another apt is waited for."""
        self._update()
        self._run_apt(*arguments)

    def _run_apt(self, *arguments, cwd=None):
        sources = os.path.join(self.folder, "sources.list")
        options = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self.lists,
            "DPkg::Lock::Timeout": "600",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
        }
        command = ["apt-get", "-qq"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        run(*command, *arguments, env=environment, cwd=cwd)

    def _update(self):
        if self.updated:
            return
        os.makedirs(os.path.join(self.lists, "partial"), exist_ok=True)
        with open(os.path.join(self.folder, "sources.list"), "w", encoding="utf-8") as file:
            file.writelines(self._sources())
        self._run_apt("update")
        self.updated = True

    @staticmethod
    def _sources():
        """The machine's binary sources of Debian, and the backports from the same place."""
        lines, form = set(), "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(CREATED_BY)"
        for row in _index_targets(form):
            uri, release, component, origin, kind = row
            if kind != "Packages" or origin != "Debian":
                continue
            lines.add(f"deb {uri} {release} {component}\n")
            if "-" not in release:
                lines.add(f"deb {uri} {release}-backports {component}\n")
        if not lines:
            raise Failure("this machine's apt knows no source of Debian's packages")
        return sorted(lines)

    def versions(self, package):
        """The versions that can be had, newest first."""
        self._update()
        text = output("apt-cache", "-o", f"Dir::Etc::SourceList={self.folder}/sources.list",
                      "-o", "Dir::Etc::SourceParts=/dev/null",
                      "-o", f"Dir::State::Lists={self.lists}", "madison", package)
        return [line.split("|")[1].strip() for line in text.splitlines() if "Packages" in line]

    def dependencies(self, package):
        self._update()
        text = output("apt-cache", "-o", f"Dir::Etc::SourceList={self.folder}/sources.list",
                      "-o", "Dir::Etc::SourceParts=/dev/null",
                      "-o", f"Dir::State::Lists={self.lists}", "depends", package)
        return [line.split()[-1] for line in text.splitlines() if "Depends:" in line]

    def unpack(self, package, destination, version=None):
        """Downloads a package and unpacks it into a folder; installs nothing."""
        name = f"{package}={version}" if version else package
        downloads = os.path.join(self.folder, "downloads")
        shutil.rmtree(downloads, ignore_errors=True)
        os.makedirs(downloads)
        self._update()
        self._run_apt("download", name, cwd=downloads)
        found = os.listdir(downloads)
        if len(found) != 1:
            raise Failure(f"apt-get downloaded {len(found)} files for {package}, not one")
        run("dpkg", "-x", os.path.join(downloads, found[0]), destination)
        shutil.rmtree(downloads)

    def unpack_other_qemu(self, destination):
        """Unpacks QEMU in another version than the installed one, to be tried beside it."""
        complete = os.path.join(destination, "complete")
        if os.path.exists(complete):
            return
        shutil.rmtree(destination, ignore_errors=True)
        installed = upstream(package_version("qemu-utils"))
        others = [version for version in self.versions("qemu-utils")
                  if upstream(version) != installed]
        if not others:
            raise Failure(f"no source has another version of QEMU than {installed}")
        os.makedirs(destination)
        print(f"Unpacking QEMU {others[0]}", flush=True)
        for package in ("qemu-utils", "qemu-system-x86", "qemu-system-common"):
            self.unpack(package, destination, others[0])
        # Firmware is looked for beside the program; that of the installed QEMU does.
        for name in ("qemu", "seabios"):
            link = os.path.join(destination, "usr/share", name)
            shutil.rmtree(link, ignore_errors=True)
            os.symlink(f"/usr/share/{name}", link)
        for program in QEMU:
            said = output("ldd", os.path.join(destination, "usr/bin", program))
            if "not found" in said:
                raise Failure(f"{program} of QEMU {others[0]} lacks libraries:\n{said}")
        _give_own_modules(destination)
        with open(complete, "w", encoding="utf-8"):
            pass

    def install_programs(self, scenarios):
        """Installs the programs of these scenarios that are missing; touches no other."""
        programs = dict(PROGRAMS)
        for name in scenarios:
            programs.update(PROGRAMS_OF.get(name, {}))
        wanted = {package for program, packages in programs.items()
                  if not shutil.which(program) for package in packages}
        if wanted:
            print(f"Installing {' '.join(sorted(wanted))}", flush=True)
            self.apt("install", *sorted(wanted))
        if not all(shutil.which(program) for program in QEMU):
            self._install_qemu()
        missing = [program for program in [*programs, *QEMU] if not shutil.which(program)]
        if missing:
            raise Failure(f"still missing after installing: {' '.join(missing)}")

    def _install_qemu(self):
        """QEMU in one version: that of the installed qemu-utils, or the newest there is."""
        installed = package_version("qemu-utils")
        offered = self.versions("qemu-system-x86")
        if not offered:
            raise Failure("no source has qemu-system-x86")
        version = installed if installed in offered else offered[0]
        packages = ["qemu-system-x86", "qemu-system-common", "qemu-utils"]
        print(f"Installing QEMU {version}", flush=True)
        target = ["-t", f"{_codename()}-backports"] if "~bpo" in version else []
        self.apt("install", *target, *[f"{name}={version}" for name in packages])


def _give_own_modules(destination):
    """Lets the unpacked QEMU find its modules where those of the installed one lie: it would load
    these, and some versions end at once when one is of another build."""
    program = os.path.join(destination, "usr/bin/qemu-system-x86_64")
    own = glob.glob(os.path.join(destination, "usr/lib/*/qemu"))
    if len(own) != 1:
        raise Failure(f"QEMU has {len(own)} folders of modules, not one")
    installed = os.path.join("/", os.path.relpath(own[0], destination))
    os.rename(program, f"{program}.real")
    with open(program, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\nexec unshare --mount sh -c "
                   "'mount --bind \"$0\" \"$1\" && shift && exec \"$@\"' "
                   f"'{own[0]}' '{installed}' '{program}.real' \"$@\"\n")
    os.chmod(program, 0o755)


def _index_targets(form):
    text = output("apt-get", "indextargets", "--format", form)
    return {tuple(line.split("|")) for line in text.splitlines() if line.count("|") == 4}


def _codename():
    with open("/etc/os-release", encoding="utf-8") as file:
        for line in file:
            if line.startswith("VERSION_CODENAME="):
                return line.split("=")[1].strip().strip('"')
    raise Failure("/etc/os-release names no Debian release")


def upstream(version):
    """The upstream part of a Debian version, as 7.2 or 10.0.2."""
    return version.split(":")[-1].split("+")[0].split("-")[0]


def package_version(package):
    return output("dpkg-query", "-W", "-f", "${Version}", package,
                  check=False, stderr=subprocess.DEVNULL)
