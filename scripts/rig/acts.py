"""What happens to a disk between two backups: by its guest, by QEMU's monitor, and by tools.

Every act says in words what it did. What it did to the trackers' ground, it reports to the disk's
life as events: these are the only causes for which a tracker may be refused.
"""

import os
import shutil

from .bare import Bare
from .monitor import Died, Refused
from .run import Failure, run

KIB = 1 << 10
MIB = 1 << 20


def is_ours(name):
    return name.startswith("qdelta-")


def range_of(random, size):
    """A range of a disk: mostly small, on no boundary that anybody thought of."""
    align = random.choice([1, 512, 4 * KIB, 64 * KIB])
    offset = random.randrange(size) // align * align
    length = min(random.randrange(1, random.choice([KIB, 16 * KIB, 200 * KIB, MIB])), size - offset)
    return offset, max(1, length)


def guest_act(random, size):
    offset, length = range_of(random, size)
    return random.choice([
        f"write -q -z {offset} {length}", f"write -q -z -u {offset} {length}",
        f"discard -q {offset} {length}", "flush",
        *[f"write -q -P {random.randrange(1, 256)} {offset} {length}"] * 6])


# While QEMU runs.

def write(life, machine):
    acts = [guest_act(life.random, life.size) for _ in range(life.random.randrange(1, 6))]
    machine.write(acts)
    return "; ".join(acts)


def save_state(life, machine):
    name = life.name("s")
    if life.random.random() < 0.5:
        machine.monitor(f"savevm {name}")
        return f"savevm {name}"
    node = machine.top()["node-name"]
    machine.job("snapshot-save", tag=name, vmstate=node, devices=[node])
    return f"snapshot-save {name}"


def _a_snapshot(life, machine):
    snapshots = machine.top()["image"].get("snapshots", [])
    if not snapshots:
        raise Refused("there is no internal snapshot")
    return life.random.choice(snapshots)


def load_state(life, machine):
    """Also qdelta's own, and one from before it; not while there are bitmaps, so these go first."""
    snapshot = _a_snapshot(life, machine)
    if life.random.random() < 0.3:
        remove_bitmaps(life, machine, machine.bitmaps())
    name, said = snapshot["name"], "loadvm"
    if snapshot["vm-state-size"]:
        machine.monitor(f"loadvm {name}")
    else:
        # A snapshot of the disk alone can't be loaded into a machine: by qemu-img then.
        machine.quit()
        life.tool("snapshot", "-a", name, life.path)
        said = "qemu-img snapshot -a"
    life.happened("revert")
    return f"{said} {name}"


def delete_state(life, machine):
    snapshot = _a_snapshot(life, machine)
    machine.monitor(f"delvm {snapshot['name']}")
    if is_ours(snapshot["name"]):
        life.happened("snapshot removed")
        if life.random.random() < 0.5:
            write(life, machine)
            machine.monitor(f"savevm {snapshot['name']}")
            life.happened("snapshot remade")
    return f"delvm {snapshot['name']}"


def external_snapshot(life, machine):
    path = life.new_file()
    machine.execute("blockdev-snapshot-sync", node_name=machine.top()["node-name"],
                    snapshot_file=path, format="qcow2", snapshot_node_name=life.name("node"))
    life.happened("chain")
    return f"external snapshot {path}"


def commit(life, machine):
    """The whole top goes down into a layer below, or a layer from the middle."""
    chain = machine.chain()
    if len(chain) < 2:
        raise Refused("there is nothing to commit into")
    low = life.random.randrange(1, len(chain))
    high = life.random.randrange(0, low)
    machine.job("block-commit", lambda: life.happened("chain"), auto_dismiss=False,
                device=machine.top()["node-name"], top=chain[high], base=chain[low])
    return f"commit {chain[high]} into {chain[low]}"


def stream(life, machine):
    chain = machine.chain()
    if len(chain) < 2:
        raise Refused("there is nothing to pull up")
    base = life.random.choice([None, *chain[2:]])
    machine.job("block-stream", lambda: life.happened("chain"), auto_dismiss=False,
                device=machine.top()["node-name"], **({"base": base} if base else {}))
    return f"pull up from above {base}"


def mirror(life, machine):
    """The disk moves to another file, all of it or what its top layer has."""
    path, sync = life.new_file(), life.random.choice(["full", "top"])
    if len(machine.chain()) < 2:
        sync = "full"
    machine.job("drive-mirror", lambda: life.happened("chain"), auto_dismiss=False,
                device=machine.top()["node-name"], target=path, format="qcow2", sync=sync,
                mode="absolute-paths", node_name=life.name("node"))
    return f"mirror {sync} to {path}, and go on there"


def begun_job(life, machine):
    """A job that is still at its beginning when QEMU ends."""
    kind = life.random.choice(["block-commit", "block-stream", "drive-mirror"])
    more = {}
    if kind == "drive-mirror":
        more = {"target": life.new_file(), "format": "qcow2", "sync": "full"}
    elif len(machine.chain()) < 2:
        raise Refused("there is no backing file")
    machine.execute(kind, job_id=life.name("slow"), device=machine.top()["node-name"], speed=1,
                    **more)
    life.happened("chain")
    write(life, machine)
    raise EndNow(f"{kind} has begun")


class EndNow(Exception):
    """QEMU must end here, in good order or not."""


def resize(life, machine):
    old, size = life.size, life.random.randrange(1, 24) * 512 * KIB + 512 * life.random.choice([0, 1])
    if old > 64 * KIB and life.random.random() < 0.3:
        # By less than a bit of a bitmap.
        size = old - 512
    machine.execute("block_resize", node_name=machine.top()["node-name"], size=size)
    life.resized(size)
    text = f"block_resize {old} -> {size}"
    if life.random.random() < 0.5:
        machine.execute("block_resize", node_name=machine.top()["node-name"], size=old)
        life.resized(old)
        text += f" -> {old}"
    return text


def reset(_, machine):
    machine.execute("system_reset")
    return "system_reset"


def move_machine(life, machine):
    """Live migration on the same storage, with or without the bitmaps in the stream."""
    place, bitmaps = os.path.join(life.folder, "stream"), life.random.random() < 0.5
    other = Bare(life.another_qemu(), life.folder, machine.chain()[0], incoming=place)
    try:
        machine.migrate(other, place, bitmaps)
    except (Refused, Died, Failure):
        other.kill()
        life.happened("kill")
        raise
    life.machine = other
    life.happened("migration")
    return f"migrated to QEMU {other.qemu.version}, bitmaps in the stream: {bitmaps}"


def remove_bitmaps(life, machine, names):
    node = machine.top()["node-name"]
    for name in names:
        machine.execute("block-dirty-bitmap-remove", node=node, name=name)
        if is_ours(name):
            life.happened("map removed" if name.endswith(".map") else "bitmap removed")


def bitmap_of_others(life, machine):
    """An admin's own bitmap is made, cleared, merged with others, and removed."""
    node, names = machine.top()["node-name"], machine.bitmaps()
    others = [name for name in names if not is_ours(name)]
    if not others or life.random.random() < 0.3:
        name = life.name("b")
        machine.execute("block-dirty-bitmap-add", node=node, name=name,
                        persistent=life.random.random() < 0.7)
        return f"bitmap {name} added"
    name = life.random.choice(others)
    kind = life.random.choice(["clear", "disable", "enable", "remove", "merge", "merge"])
    if kind == "merge":
        target = life.random.choice(names)
        if target.endswith(".map"):
            raise Refused("nobody merges into the map")
        source = life.random.choice(names)
        machine.execute("block-dirty-bitmap-merge", node=node, target=target, bitmaps=[source])
        return f"bitmap {source} merged into {target}"
    machine.execute(f"block-dirty-bitmap-{kind}", node=node, name=name)
    return f"bitmap {name}: {kind}"


def our_bitmap(life, machine):
    """An admin lays hands on qdelta's bitmap."""
    node = machine.top()["node-name"]
    ours = [name for name in machine.bitmaps() if is_ours(name)]
    if not ours:
        raise Refused("there is no bitmap of qdelta's")
    name = life.random.choice(ours)
    kind = life.random.choice(["clear", "disable", "remove", "remake", "back up by it"])
    is_map = name.endswith(".map")
    if kind == "back up by it":
        machine.job("drive-backup", device=node, sync="incremental", bitmap=name, format="qcow2",
                    target=life.new_file(), mode="absolute-paths", auto_dismiss=False)
        life.happened("map cleared" if is_map else "bitmap cleared")
    elif kind == "clear":
        machine.execute("block-dirty-bitmap-clear", node=node, name=name)
        life.happened("map cleared" if is_map else "bitmap cleared")
    elif kind == "disable":
        machine.execute("block-dirty-bitmap-disable", node=node, name=name)
        life.happened("bitmap disabled")
    else:
        remove_bitmaps(life, machine, [name])
        if kind == "remake":
            machine.execute("block-dirty-bitmap-add", node=node, name=name, persistent=True)
            life.happened("bitmap cleared", "bitmap remade")
    return f"{kind}: bitmap {name}"


RUNNING = [*[write] * 8, save_state, save_state, load_state, load_state, delete_state,
           external_snapshot, external_snapshot, commit, commit, stream, mirror, resize, resize,
           reset, move_machine, move_machine, bitmap_of_others, bitmap_of_others]
# Each of these ends the trackers' ground; not so often that nothing else is tried.
SPOILING = [our_bitmap, our_bitmap, our_bitmap, begun_job]


# While it does not.

def offline_snapshot(life):
    kind = life.random.choice(["-c", "-a", "-a", "-d"])
    if kind == "-c":
        name = life.name("s")
    else:
        snapshots = life.info().get("snapshots", [])
        if not snapshots:
            raise Refused("there is no internal snapshot")
        name = life.random.choice(snapshots)["name"]
    life.tool("snapshot", kind, name, life.path)
    if kind == "-d" and is_ours(name):
        life.happened("snapshot removed")
        if life.random.random() < 0.3:
            life.tool("snapshot", "-c", name, life.path)
            life.happened("snapshot remade")
    life.happened("revert")
    return f"qemu-img snapshot {kind} {name}"


def offline_resize(life):
    size = life.random.randrange(1, 24) * 512 * KIB
    old = life.size
    life.tool("resize", "-q", "--shrink", *life.random.choice([[], ["--preallocation=full"]])
              if size > old else [], life.path, str(size))
    life.resized(size)
    return f"qemu-img resize {old} -> {size}"


def offline_commit(life):
    backing = life.backing()
    if not backing:
        raise Refused("there is no backing file")
    life.tool("commit", "-q", "-d", life.path)
    life.path = backing
    life.happened("chain")
    return f"qemu-img commit into {backing}"


def offline_rebase(life):
    if not life.backing():
        raise Refused("there is no backing file")
    life.tool("rebase", "-q", "-b", "", life.path)
    life.happened("chain")
    return "qemu-img rebase to nothing"


def offline_overlay(life):
    """Also one that is shorter than what is below."""
    path = life.new_file()
    size = life.random.choice([[], [], [str(max(512, life.size // 2 // 512 * 512))]])
    life.tool("create", "-q", "-f", "qcow2", "-b", life.path, "-F", "qcow2", path, *size)
    life.path = path
    life.happened("chain")
    if size:
        life.happened("shrink")
    return f"a new overlay {path} {size}"


def amend(life):
    option = life.random.choice(["compat=0.10", "compat=1.1", "lazy_refcounts=on",
                                 "lazy_refcounts=off", "refcount_bits=32", "refcount_bits=16"])
    life.tool("amend", "-o", option, life.path)
    life.happened("amend")
    return f"qemu-img amend {option}"


def check(life):
    """With a bitmap in the image, QEMU (7.2 to 10.0) loses all snapshots here."""
    life.happened("snapshot removed")
    life.tool("check", "-q", "-r", life.random.choice(["all", "leaks"]), life.path, may_fail=True)
    return "qemu-img check -r"


def convert(life):
    """The same disk in a new file; or the state of a snapshot with the bitmaps of now."""
    arguments, new = [], life.new_file()
    if life.info()["format-specific"]["data"].get("bitmaps") is not None:
        arguments += life.random.choice([[], ["--bitmaps"], ["--bitmaps"]])
    snapshots = life.info().get("snapshots", [])
    if snapshots and life.random.random() < 0.5:
        arguments += ["-l", "snapshot.id=" + life.random.choice(snapshots)["id"]]
    life.tool("convert", "-O", "qcow2", *arguments, life.path, new)
    os.rename(new, life.path)
    life.happened("replaced", "chain", "snapshot removed", "bitmap removed")
    return f"qemu-img convert {' '.join(arguments)} in place of it"


def copy_back(life):
    """A copy is put aside, or comes back, into the same file or in its place."""
    kept = life.path + ".kept"
    if not os.path.exists(kept):
        shutil.copy2(life.path, kept)
        life.chain_of_copy = life.files()
        return "a copy is put aside"
    if life.files() != life.chain_of_copy:
        raise Refused("the layers are others now")
    if life.random.random() < 0.5:
        os.rename(kept, life.path)
        how = "in its place"
    else:
        shutil.copy2(kept, life.path)
        os.remove(kept)
        how = "into the same file"
    life.happened("replaced", "snapshot removed", "bitmap removed", "revert", "shrink")
    return f"an older copy comes back, {how}"


def offline_bitmaps(life):
    bitmaps = [it["name"] for it in life.info()["format-specific"]["data"].get("bitmaps", [])]
    if not bitmaps:
        life.tool("bitmap", "--add", life.path, life.name("b"))
        return "qemu-img bitmap --add"
    name = life.random.choice(bitmaps)
    kind = life.random.choice(["--remove", "--clear", "--disable", "--merge"])
    if kind == "--merge":
        if name.endswith(".map"):
            raise Refused("nobody merges into the map")
        life.tool("bitmap", "--merge", life.random.choice(bitmaps), life.path, name)
        return f"qemu-img bitmap --merge into {name}"
    life.tool("bitmap", kind, life.path, name)
    if is_ours(name):
        what = "map" if name.endswith(".map") else "bitmap"
        life.happened({"--remove": f"{what} removed", "--clear": f"{what} cleared",
                       "--disable": "bitmap disabled"}[kind])
    return f"qemu-img bitmap {kind} {name}"


def roll_back(life):
    """qdelta itself puts an older point into the image."""
    repo = life.random.choice(life.repos)
    if len(repo.points) < 2:
        raise Refused("there is no older point")
    point = life.random.choice(repo.points)
    life.restore_in_place(repo, point)
    life.happened("replaced", "snapshot removed", "bitmap removed", "chain", "shrink", "revert")
    return f"qdelta restore --in-place {point}"


OFFLINE = [offline_snapshot, offline_snapshot, offline_resize, offline_commit, offline_rebase,
           offline_overlay, amend, check, convert, copy_back, copy_back, offline_bitmaps, roll_back]


def tool(qemu, *arguments, may_fail=False):
    """qemu-img, which may refuse."""
    done = run(qemu.program("qemu-img"), *arguments, check=False)
    if done.returncode < 0:
        raise Failure(f"qemu-img died: {arguments}\n{done.stdout}")
    if done.returncode != 0 and not may_fail:
        raise Refused(f"qemu-img {' '.join(arguments)}: {done.stdout.strip()}")
