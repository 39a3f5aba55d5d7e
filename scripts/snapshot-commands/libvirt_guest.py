"""What the snapshot commands of libvirt guests have in common: virsh, QEMU's monitor, bitmaps, whose turn it is."""

import contextlib
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from protocol import NAME, Problem

GRANULARITY = 65536
# The order that lists QEMU's block nodes.
LIST_NODES = ("query-named-block-nodes", {"flat": True})
# Nodes in QEMU's memory, of which bits are copied into new bitmaps.
NODE = "qdelta-marks-"
# Beside what is made of an image in a folder for all guests: a link to the image.
IMAGE = "image"
# What virsh says of a job that libvirt restored after its end and that nobody has begun; and what to do then.
NO_JOB_DATA = "backup job data missing"
HELD = ("libvirt holds a backup job of {name} that was never begun, and begins no other: libvirtd was killed just then. The "
        "guest runs on. Neither virsh domjobabort nor a restart of libvirtd ends it. Stop libvirtd, remove the line that "
        "has async='backup' from /run/libvirt/qemu/{name}.xml, and start libvirtd (docs/snapshot-commands.md)")
# The file that a backup puts over an image.
OVERLAY = re.compile(rf".*\.{NAME}")


class Guest:
    """The guest of a request, as libvirt and QEMU have it."""

    def __init__(self, request, volumes=None):
        self.request = request
        # Where the volumes of pools are, by pool and volume; nothing for one that virsh does not find.
        self.volumes = dict(volumes or {})
        # A name like "3" would be taken for an id.
        self.handle = request.get("uuid") or request["domain"]
        self.name = request["domain"]

    def ask(self, *commands):
        """Runs commands of virsh's one after the other, in one run and one connection, also those behind one that
        fails; gives what each prints, or a `Problem` in its place."""
        end = f"end-of-answer-{os.urandom(8).hex()}"
        words = "; ".join(f"{quoted(command)}; echo {end}; echo --err {end}" for command in commands)
        virsh = ["virsh", "-q"]
        if self.request.get("connect"):
            virsh += ["-c", self.request["connect"]]
        done = subprocess.run([*virsh, words], text=True, capture_output=True, check=False,
                              stdin=subprocess.DEVNULL, env=dict(os.environ, LC_ALL="C.UTF-8"))
        said, failed = done.stdout.split(end), done.stderr.split(f"error: {end}\n")
        if len(said) != len(commands) + 1 or len(failed) != len(commands) + 1:
            # No connection, or virsh was ended: what was done nobody knows, and nothing is done twice.
            failed = "\n".join(failed)
            return [_problem(command, failed or f"status {done.returncode}") for command in commands]
        return [_problem(command, text) if re.search("^error:", text, re.MULTILINE) else answer
                for command, answer, text in zip(commands, said, failed)]

    def virsh(self, *command):
        """Runs one command of virsh's; gives what it prints."""
        return sure(self.ask(command)[0])

    def look(self, *more):
        """The guest as it is now, and the answers to more commands, by one run of virsh. Fails if libvirt would begin no
        job of it."""
        name = self.handle
        xml, inactive, state, info, job, *said = self.ask(
            ("dumpxml", name), ("dumpxml", name, "--inactive"), ("domstate", name), ("dominfo", name),
            ("domjobinfo", name), *more)
        if isinstance(job, Problem) and NO_JOB_DATA in str(job):
            raise Problem(HELD.format(name=self.name))
        return Look(*self.parsed(sure(xml), sure(inactive)), sure(state), sure(info)), said

    def parsed(self, *texts):
        """Definitions, in which each volume of a pool has the path that virsh knows of it."""
        all_xml = [ElementTree.fromstring(text) for text in texts]
        sources = [source for xml in all_xml for source in xml.iter("source")
                   if source.get("pool") and source.get("volume")]
        keys = {volume_key(source): source for source in sources if volume_key(source) not in self.volumes}
        orders = [("vol-path", source.get("volume"), "--pool", source.get("pool")) for source in keys.values()]
        for key, path in zip(keys, self.ask(*orders) if orders else []):
            # Of a pool on a server it is no path of this host.
            is_local = not isinstance(path, Problem) and path.strip().startswith("/")
            self.volumes[key] = path.strip() if is_local else None
        for source in sources:
            path = self.volumes[volume_key(source)]
            if path:
                source.set("dev" if path.startswith("/dev/") else "file", path)
        return all_xml

    def xml(self):
        """The definition of the running guest."""
        return self.parsed(self.virsh("dumpxml", self.handle))[0]

    def xml_to_define(self):
        """The definition that it starts with the next time, with its secrets, and as libvirt has it."""
        return ElementTree.fromstring(self.virsh("dumpxml", self.handle, "--inactive", "--security-info"))

    def order(self, name, arguments=None):
        """The command of virsh's that gives QEMU's monitor an order."""
        text = json.dumps({"execute": name, "arguments": arguments or {}})
        return ("qemu-monitor-command", self.handle, text)

    def monitor(self, *orders):
        """Gives QEMU's monitor some orders, in one run of virsh; gives the answers, or fails by the first error."""
        said = self.ask(*[self.order(*order) for order in orders])
        return [answer_of(order[0], answer) for order, answer in zip(orders, said)]

    def nodes(self):
        """QEMU's block nodes."""
        return self.monitor(LIST_NODES)[0]


class Look:
    """A guest at one time."""

    def __init__(self, xml, inactive, state, info):
        self.xml, self.inactive = xml, inactive
        # Whether there is a QEMU.
        self.is_running = state.strip() not in ("shut off", "crashed")
        # Whether it has a definition when it does not run.
        self.is_persistent = bool(re.search(r"^Persistent: +yes$", info, re.MULTILINE))
        # Whether it goes on from its memory when it is started: that belongs to the files that it was on.
        self.has_memory = not self.is_running and bool(re.search(r"^Managed save: +yes$", info, re.MULTILINE))


def sure(answer):
    """What virsh has printed, or the failure that it was."""
    if isinstance(answer, Problem):
        raise answer
    return answer


def answer_of(name, said):
    """What QEMU's monitor has answered to an order."""
    answer = json.loads(sure(said))
    if "error" in answer:
        raise Problem(f"QEMU's {name}: {answer['error'].get('desc')}")
    return answer["return"]


def quoted(command):
    """A command of virsh's as virsh reads it in a line of several."""
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)


def _problem(command, said):
    return Problem(f"virsh {command[0]}: {' '.join(said.split())}")


def source_of(element):
    """The path of a disk's, mirror's or backing file's source; nothing where it is no local one."""
    source = element.find("source") if element is not None else None
    if source is None:
        return None
    return source.get("file") or source.get("dev")


def volume_key(source):
    """By what the path of a volume is kept."""
    return f"{source.get('pool')}/{source.get('volume')}"


def no_place(target, disk):
    """Why there is no path of a disk."""
    source = disk.find("source")
    if source is not None and source.get("volume"):
        return Problem(f"disk {target} is volume {source.get('volume')} of pool {source.get('pool')}, and virsh "
                       "vol-path finds no file or block device of this host for it: is the pool started?")
    return Problem(f"disk {target} is no local file or block device")


def disks_of(xml):
    """The disks of a definition, by target."""
    return {disk.find("target").get("dev"): disk for disk in xml.findall("devices/disk")}


def sources_of(xml):
    """The paths of the disks of a definition, by target."""
    return {target: source_of(disk) for target, disk in disks_of(xml).items()}


def is_same(one, other):
    """Whether two paths lead to one file."""
    return bool(one and other) and os.path.realpath(one) == os.path.realpath(other)


def image_node(nodes, path, drivers=("qcow2",)):
    """The node of an image that is open in QEMU."""
    for node in nodes:
        if node.get("drv") in drivers and is_same(node.get("file"), path):
            return node
    return None


def orders_to_mark(disk, number, with_end=True):
    """What makes two bitmaps in QEMU's memory that have bits from the beginning; and the node that has them: bitmap
    "marks" with those that show that nobody cleared it, "end" with the disk's last one, if that is wanted."""
    node, size = f"{NODE}{number}", disk["size"]
    write = lambda at: ("human-monitor-command", {
        "command-line": f'qemu-io {node} "write -q {at} {min(512, size - at)}"'})
    end = [("block-dirty-bitmap-add", {"node": node, "name": "end", "granularity": GRANULARITY}),
           write((size - 1) // 512 * 512)]
    return node, [
        ("blockdev-add", {"driver": "null-co", "node-name": node, "size": size, "read-zeroes": True}),
        ("block-dirty-bitmap-add", {"node": node, "name": "marks", "granularity": GRANULARITY}),
        *[write(at) for at in disk["marks"]],
        *(end if with_end else [])]


def marked(guest, disk, number):
    """Makes them, sees that they are what they must be, and gives their node."""
    node, orders = orders_to_mark(disk, number)
    *_, nodes = guest.monitor(*orders, LIST_NODES)
    bits = {at // GRANULARITY for at in [*disk["marks"], disk["size"] - 1]}
    made = next(it for it in nodes if it.get("node-name") == node)
    # The last bit counts as much as every other, however little of the disk it stands for.
    counts = {it["name"]: it["count"] / GRANULARITY for it in made.get("dirty-bitmaps", [])}
    if counts != {"marks": len(bits), "end": 1}:
        raise Problem(f"QEMU made other marks than it was told to: {counts}")
    return node


def left_marks(nodes):
    """The names of such nodes that are still there."""
    return [node["node-name"] for node in nodes if node.get("node-name", "").startswith(NODE)]


def left_nodes(nodes, xml):
    """The names of nodes over files of a backup's on which no disk is, as libvirt leaves them when it ends while it
    makes a moment: those first that lie over others."""
    used = {os.path.realpath(path) for path in map(source_of, xml.iter()) if path}
    left = [node for node in nodes if re.search(NAME, os.path.basename(node.get("file") or ""))
            and os.path.realpath(node["file"]) not in used]
    return [node["node-name"] for node in sorted(left, key=lambda node: node["drv"] in ("file", "host_device"))]


def stale_bitmaps(disk, node, keep):
    """A disk's bitmaps of this repository in an image that QEMU writes to, but those to keep; also the latter if
    QEMU calls them inconsistent, since nothing can be learned from them any more."""
    stale = []
    for bitmap in node.get("dirty-bitmaps", []):
        ours = re.fullmatch(rf"({NAME})(\.map|\.end)?", bitmap["name"])
        if not ours or ours.group(2) != disk["owner"]:
            continue
        if bitmap.get("inconsistent") or ours.group(1) != keep:
            stale.append(bitmap["name"])
    return stale


def is_overlay(path):
    """Whether a file is one that `external-snapshot` has put over an image."""
    return bool(path and OVERLAY.fullmatch(os.path.basename(path)))


def is_away(look):
    """Whether a disk is on an overlay, by either definition."""
    return any(is_overlay(source) for xml in (look.xml, look.inactive) for source in sources_of(xml).values())


def left_scratch(request, xml):
    """The scratch files beside the images of a guest, as `qemu-bitmap` has them made."""
    for target, path in sources_of(xml).items():
        folder = Place(request, "QDELTA_SCRATCH").folder(target, path) if path else ""
        image = re.escape(os.path.basename(os.path.realpath(path or "")))
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if re.fullmatch(rf"{image}\.{NAME}\.scratch", name):
                yield os.path.join(folder, name)


def may_recover_other(request):
    """Whether this is a call to mend everything, and not one of the other command's."""
    return request["verb"] == "recover" and not request.get("alone")


def recover_other(command, request):
    """Has the other command of libvirt's mend what it has left: who was cut off with one of them may go on with the
    other. Gives its warnings."""
    program = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), command)
    cut_off = f"a backup of {request['domain']} by {command} was cut off"
    if not os.access(program, os.X_OK):
        raise Problem(f"{cut_off}, and that command is not beside this one: back up with it once more, which mends it")
    asked = json.dumps(request | {"alone": True})
    done = subprocess.run([program, "recover"], input=asked, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise Problem(f"{cut_off}, and it can't be mended: {' '.join(done.stderr.split())}")
    return json.loads(done.stdout).get("warnings", [])


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


@contextlib.contextmanager
def as_file(element):
    """A description as a file that virsh can read. It has no name: whoever is killed leaves none behind."""
    with open(os.memfd_create("qdelta"), "wb") as file:
        file.write(ElementTree.tostring(element))
        file.flush()
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


class Place:
    """Where the files lie that are made beside the images of a guest: there, or in the folder that a variable names.
    That may be for many guests, with images of one name: so below it each disk of a guest has a folder of its own."""

    def __init__(self, request, variable):
        self.shared = os.environ.get(variable)
        guest = request.get("uuid") or request["domain"].replace("/", "_")
        self.own = os.path.join(self.shared, guest) if self.shared else None

    def folder(self, target, path):
        """The folder for what is made of a disk."""
        return os.path.join(self.own, target) if self.shared else os.path.dirname(os.path.realpath(path))

    def can_be_written(self, target, path):
        """Whether a file can be made there: in the folder, or in the one in which it is to be made."""
        folder = self.folder(target, path)
        while self.shared and not os.path.exists(folder) and folder != self.shared:
            folder = os.path.dirname(folder)
        return os.access(folder, os.W_OK)

    def make(self, disks):
        """Makes the folders of these disks, target and path each."""
        for target, path in disks if self.shared else []:
            folder = self.folder(target, path)
            os.makedirs(folder, exist_ok=True)
            for each in (self.own, folder):
                # QEMU has another user.
                os.chmod(each, 0o711)
            link = os.path.join(folder, IMAGE)
            if os.path.lexists(link):
                os.remove(link)
            os.symlink(os.path.realpath(path), link)

    def give_back(self):
        """Removes folders in which nothing is but the link to the image."""
        for folder, _, _ in os.walk(self.own, topdown=False) if self.shared else []:
            names = os.listdir(folder)
            if names == [IMAGE]:
                os.remove(os.path.join(folder, IMAGE))
            if names in ([], [IMAGE]):
                os.rmdir(folder)


class Turn:
    """Which backup has made something of a guest, so that no other takes it away meanwhile. The note is in
    memory: after a restart of the host nobody has."""

    def __init__(self, request, command):
        name = request.get("uuid") or request["domain"].replace("/", "_")
        self.pid = request["pid"]
        self.path = os.path.join(folder_in_memory(), f"{command}-{name}")

    def check(self):
        """Fails if another backup has something that it still needs; gives whether there is no note."""
        try:
            with open(self.path, encoding="utf-8") as file:
                note = json.load(file)
        except FileNotFoundError:
            return True
        except (OSError, ValueError):
            return False
        if note["pid"] != self.pid and start_of(note["pid"]) == note["start"]:
            raise Problem(f"another backup of this guest is under way (process {note['pid']}): "
                          "try again when it is done")
        return False

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
               "pid": os.getpid(), "owner": "", "disks": []}
    try:
        for target, disk in disks_of(Guest(request).xml()).items():
            if disk.get("device", "disk") == "disk" and disk.find("readonly") is None:
                request["disks"].append({"disk": target, "owner": "", "since": None})
        is_clean = check(request)["clean"]
    except (Problem, OSError) as problem:
        sys.exit(f"{command}: {problem}")
    print(f"{command} would work for {name}: {', '.join(disk['disk'] for disk in request['disks'])}")
    if not is_clean:
        print("an earlier backup has left something: the next one mends it, or says what there is to do")
    sys.exit(0)
