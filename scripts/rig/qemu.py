"""QEMU's own view of an image, in more than one version of it."""

import json
import os
import subprocess

from .run import PATIENCE_SECONDS, Failure, output, run

# Of a disk of 64 MiB or more, a new bitmap has so many bits of 64 KiB set, by which qdelta knows it
# again.
FRESH_BYTES = 16 * 65536


class Qemu:
    """One version of QEMU, by the folder of its programs."""

    def __init__(self, folder):
        self._folder = folder
        said = output(self.program("qemu-img"), "--version")
        self.version = said.split("version ")[1].split()[0]

    def program(self, name):
        return os.path.join(self._folder, name)

    def check(self, image, may_leak=False):
        """The image is clean: not one leaked cluster either, but where QEMU was killed."""
        done = run(self.program("qemu-img"), "check", image, check=False)
        if done.returncode not in ((0, 3) if may_leak else (0,)):
            raise Failure(f"qemu-img {self.version} finds damage in {image}:\n{done.stdout}")

    def listed(self, anchor, image):
        """The names of the snapshots or bitmaps that QEMU finds in an image."""
        info = json.loads(output(self.program("qemu-img"), "info", "--output=json", image))
        if anchor == "snapshot":
            return [entry["name"] for entry in info.get("snapshots", [])]
        data = info["format-specific"]["data"]
        names = []
        for bitmap in data.get("bitmaps", []):
            # The map beside a bitmap, which shows what was allocated, records nothing.
            is_map = bitmap["name"].endswith(".map")
            if "in-use" in bitmap["flags"] or ("auto" in bitmap["flags"]) == is_map:
                raise Failure(f"QEMU {self.version} sees {bitmap}")
            if not is_map:
                names.append(bitmap["name"])
        return names

    def remove(self, anchor, image, name):
        if anchor == "snapshot":
            run(self.program("qemu-img"), "snapshot", "-d", name, image)
        else:
            run(self.program("qemu-img"), "bitmap", "--remove", image, name)

    def expect_recording(self, image, name, dirty=False):
        """QEMU has opened the image read-write, and records into the persistent bitmap."""
        for bitmap in self._bitmaps(image):
            if bitmap["name"] != name:
                continue
            if not bitmap["recording"] or not bitmap["persistent"]:
                raise Failure(f"QEMU {self.version} does not record: {bitmap}")
            count = bitmap["count"]
            if not (count > FRESH_BYTES if dirty else count == FRESH_BYTES):
                raise Failure(f"QEMU {self.version} sees {count} dirty bytes in {name}")
            return
        raise Failure(f"QEMU {self.version} has no bitmap {name} when it opens {image}")

    def _bitmaps(self, image):
        """The bitmaps of an image that a storage daemon has opened read-write."""
        daemon = subprocess.Popen(
            [self.program("qemu-storage-daemon"), "--chardev", "stdio,id=monitor",
             "--monitor", "chardev=monitor", "--blockdev",
             f"driver=qcow2,node-name=disk,file.driver=file,file.filename={image}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        orders = ["qmp_capabilities", "query-named-block-nodes", "quit"]
        said = daemon.communicate("".join(json.dumps({"execute": order}) + "\n"
                                          for order in orders), timeout=PATIENCE_SECONDS)[0]
        for line in said.splitlines():
            answer = json.loads(line).get("return")
            if isinstance(answer, list):
                node = next(node for node in answer if node.get("node-name") == "disk")
                return node.get("dirty-bitmaps", [])
        raise Failure(f"qemu-storage-daemon {self.version} could not open {image}: {said}")
