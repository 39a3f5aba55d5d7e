"""What the snapshot commands of libvirt guests have in common: virsh, QEMU's monitor, bitmaps, whose turn it is."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from protocol import NAME, Problem

GRANULARITY = 65536
# Nodes in QEMU's memory, of which bits are copied into new bitmaps.
NODE = "qdelta-marks-"


class Guest:
    """The guest of a request, as libvirt and QEMU have it."""

    def __init__(self, request):
        self.request = request
        # A name like "3" would be taken for an id.
        self.handle = request.get("uuid") or request["domain"]
        self.name = request["domain"]

    def virsh(self, *arguments, check=True):
        """Runs virsh; gives what it prints."""
        command = ["virsh", "-q"]
        if self.request.get("connect"):
            command += ["-c", self.request["connect"]]
        done = subprocess.run([*command, *arguments], text=True, capture_output=True, check=False,
                              stdin=subprocess.DEVNULL, env=dict(os.environ, LC_ALL="C.UTF-8"))
        if check and done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            raise Problem(f"virsh {arguments[0]}: {said or done.returncode}")
        return done.stdout

    def xml(self, inactive=False):
        """The definition: of the running guest, or what it starts with the next time."""
        text = self.virsh("dumpxml", self.handle, *(["--inactive"] if inactive else []))
        return ElementTree.fromstring(text)

    def is_running(self):
        """Whether there is a QEMU."""
        return self.virsh("domstate", self.handle).strip() not in ("shut off", "crashed")

    def xml_to_define(self):
        """The definition that it starts with the next time, with its secrets."""
        return ElementTree.fromstring(self.virsh("dumpxml", self.handle, "--inactive", "--security-info"))

    def is_persistent(self):
        """Whether it has a definition when it does not run."""
        return re.search(r"^Persistent: +yes$", self.virsh("dominfo", self.handle), re.MULTILINE)

    def monitor(self, *orders):
        """Gives QEMU's monitor some orders, in one run of virsh; gives the answers. Stops at an error."""
        calls = []
        for name, arguments in orders:
            text = json.dumps({"execute": name, "arguments": arguments}).replace("'", "\\u0027")
            calls.append(f"qemu-monitor-command '{self.handle}' '{text}'")
        said = self.virsh("; ".join(calls))
        decoder, answers, at = json.JSONDecoder(), [], 0
        while said[at:].strip():
            at += len(said[at:]) - len(said[at:].lstrip())
            answer, at = decoder.raw_decode(said, at)
            answers.append(answer)
        for (name, _), answer in zip(orders, answers):
            if "error" in answer:
                raise Problem(f"QEMU's {name}: {answer['error'].get('desc')}")
        if len(answers) != len(orders):
            raise Problem("QEMU's monitor did not answer")
        return [answer["return"] for answer in answers]

    def nodes(self):
        """QEMU's block nodes."""
        return self.monitor(("query-named-block-nodes", {"flat": True}))[0]


def source_of(element):
    """The path of a disk's, mirror's or backing file's source; nothing where it is no local one."""
    source = element.find("source") if element is not None else None
    if source is None:
        return None
    return source.get("file") or source.get("dev")


def disks_of(xml):
    """The disks of a definition, by target."""
    return {disk.find("target").get("dev"): disk for disk in xml.findall("devices/disk")}


def is_same(one, other):
    """Whether two paths lead to one file."""
    return bool(one and other) and os.path.realpath(one) == os.path.realpath(other)


def image_node(nodes, path, drivers=("qcow2",)):
    """The node of an image that is open in QEMU."""
    for node in nodes:
        if node.get("drv") in drivers and is_same(node.get("file"), path):
            return node
    return None


def marked(guest, disk, number):
    """Makes two bitmaps in QEMU's memory that have bits from the beginning; gives the node that has them:
    bitmap "marks" with those that show that nobody cleared it, "end" with the disk's last one."""
    node, size = f"{NODE}{number}", disk["size"]
    write = lambda at: ("human-monitor-command", {
        "command-line": f'qemu-io {node} "write -q {at} {min(512, size - at)}"'})
    guest.monitor(
        ("blockdev-add", {"driver": "null-co", "node-name": node, "size": size, "read-zeroes": True}),
        ("block-dirty-bitmap-add", {"node": node, "name": "marks", "granularity": GRANULARITY}),
        *[write(at) for at in disk["marks"]],
        ("block-dirty-bitmap-add", {"node": node, "name": "end", "granularity": GRANULARITY}),
        write((size - 1) // 512 * 512))
    bits = {at // GRANULARITY for at in [*disk["marks"], size - 1]}
    made = next(it for it in guest.nodes() if it.get("node-name") == node)
    counts = {it["name"]: it["count"] for it in made.get("dirty-bitmaps", [])}
    last = size - (size - 1) // GRANULARITY * GRANULARITY
    if counts != {"marks": (len(bits) - 1) * GRANULARITY + last, "end": last}:
        raise Problem(f"QEMU made other marks than it was told to: {counts}")
    return node


def unmark(guest, nodes):
    """Takes such nodes away again."""
    names = [node["node-name"] for node in nodes if node.get("node-name", "").startswith(NODE)]
    if names:
        guest.monitor(*[("blockdev-del", {"node-name": name}) for name in names])


def sweep_bitmaps(guest, disk, node, keep):
    """Removes a disk's bitmaps of this repository from an image that QEMU writes to, but those to keep; also
    the latter if QEMU calls them inconsistent, since nothing can be learned from them any more."""
    stale = []
    for bitmap in node.get("dirty-bitmaps", []):
        ours = re.fullmatch(rf"({NAME})(\.map|\.end)?", bitmap["name"])
        if not ours or ours.group(2) != disk["owner"]:
            continue
        if bitmap.get("inconsistent") or ours.group(1) != keep:
            stale.append(bitmap["name"])
    if stale:
        guest.monitor(*[("block-dirty-bitmap-remove", {"node": node["node-name"], "name": name})
                        for name in stale])


def start_of(pid):
    """When a process began, in the kernel's words; nothing if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def folder_in_memory():
    """A folder of our own that is empty after a restart of the host."""
    own = f"/run/user/{os.geteuid()}"
    place = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", own)
    folder = os.path.join(place, "qdelta")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


class Turn:
    """Which backup has made something of a guest, so that no other takes it away meanwhile. The note is in
    memory: after a restart of the host nobody has."""

    def __init__(self, request, command):
        name = request.get("uuid") or request["domain"].replace("/", "_")
        self.pid = request["pid"]
        self.path = os.path.join(folder_in_memory(), f"{command}-{name}")

    def check(self):
        """Fails if another backup has something that it still needs."""
        try:
            with open(self.path, encoding="utf-8") as file:
                note = json.load(file)
        except (OSError, ValueError):
            return
        if note["pid"] != self.pid and start_of(note["pid"]) == note["start"]:
            raise Problem(f"another backup of this guest is under way (process {note['pid']}): "
                          "try again when it is done")

    def take(self, left=None):
        """Notes that this backup has, and what it leaves of each disk for the next one."""
        note = {"pid": self.pid, "start": start_of(self.pid), "left": left or {}}
        with open(f"{self.path}.new", "w", encoding="utf-8") as file:
            json.dump(note, file)
        os.replace(f"{self.path}.new", self.path)

    def left(self):
        """What this backup leaves of each disk, as `prepare` noted it."""
        with open(self.path, encoding="utf-8") as file:
            return json.load(file)["left"]

    def give_back(self):
        """Nothing is left."""
        if os.path.exists(self.path):
            os.remove(self.path)


def check_by_hand(command, name, check):
    """`--check GUEST`: for an admin who wants to know before the first backup."""
    request = {"domain": name, "uuid": None, "connect": os.environ.get("LIBVIRT_DEFAULT_URI"),
               "pid": os.getpid(), "disks": []}
    try:
        for target, disk in disks_of(Guest(request).xml()).items():
            if disk.get("device", "disk") == "disk" and disk.find("readonly") is None:
                request["disks"].append({"disk": target})
        check(request)
    except (Problem, OSError) as problem:
        sys.exit(f"{command}: {problem}")
    print(f"{command} would work for {name}: {', '.join(disk['disk'] for disk in request['disks'])}")
    sys.exit(0)
