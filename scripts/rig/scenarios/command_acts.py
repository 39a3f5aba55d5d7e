"""What happens to a guest of libvirt's between two points: by itself, its admin, and tools."""

import json
import os

from ..libvirt import virsh
from ..monitor import Refused
from ..run import PATIENCE_SECONDS, output, run, wait_for
from ..standin import KIB, MIB, TARGETS


def _virsh(*arguments):
    done = virsh(*arguments, check=False)
    if done.returncode != 0:
        raise Refused(f"virsh {' '.join(arguments)}: {done.stdout.strip()}")
    return f"virsh {' '.join(arguments)}"


def _tool(*arguments):
    done = run("qemu-img", *arguments, check=False)
    if done.returncode != 0:
        raise Refused(f"qemu-img {' '.join(arguments)}: {done.stdout.strip()}")
    return f"qemu-img {' '.join(arguments)}"


def _target(life):
    return life.random.choice(TARGETS[:len(life.guest.disks)])


def _file(life, target):
    return life.guest.files()[target]


# While it runs, or is paused.

def write(life):
    done = [life.guest.write(life.random) for _ in range(life.random.randrange(1, 8))]
    return "; ".join(done)


def discard(life):
    """A discard, or zeros."""
    index = life.random.randrange(len(life.guest.disks))
    size = len(life.guest.content[index])
    offset = life.random.randrange(size) // (64 * KIB) * 64 * KIB
    length = min(life.random.choice([4 * KIB, 64 * KIB, MIB]), size - offset)
    command = life.random.choice(["discard -q", "write -q -z", "write -q -z -u"])
    life.guest.qemu_io(index, f"{command} {offset} {length}")
    return f"disk {index}: {command} {offset} {length}"


def resize(life):
    target = _target(life)
    before = len(life.guest.content[TARGETS.index(target)])
    size = life.random.randrange(4, 16) * 512 + life.random.choice([0, 0, 1])
    said = _virsh("blockresize", life.guest.name, target, f"{size}KiB")
    life.happened("resize")
    if size * KIB < before:
        life.happened("shrink")
    if life.random.random() < 0.4:
        life.happened("shrink")
        said += "; " + _virsh("blockresize", life.guest.name, target, f"{before // KIB}KiB")
    return said


def overlay(life):
    target = _target(life)
    path = os.path.join(life.images, life.name("top") + ".qcow2")
    specs = [f"{it},file={path}" if it == target else f"{it},snapshot=no"
             for it in TARGETS[:len(life.guest.disks)]]
    said = _virsh("snapshot-create-as", life.guest.name, "--disk-only", "--no-metadata",
                  *[word for spec in specs for word in ("--diskspec", spec)])
    life.happened("chain")
    return said


def commit(life):
    said = _virsh("blockcommit", life.guest.name, _target(life), "--active", "--pivot", "--wait",
                  *life.random.choice([[], ["--shallow"]]))
    life.happened("chain")
    return said


def pull(life):
    said = _virsh("blockpull", life.guest.name, _target(life), "--wait")
    life.happened("chain")
    return said


def copy(life):
    path = os.path.join(life.images, life.name("copy") + ".qcow2")
    said = _virsh("blockcopy", life.guest.name, _target(life), "--dest", path, "--format", "qcow2",
                  "--transient-job", "--pivot", "--wait")
    life.happened("chain", "moved")
    return said


def save_state(life):
    name = life.name("s")
    if life.random.random() < 0.5:
        said = life.guest.monitor.line(f"savevm {name}").strip()
        if said:
            raise Refused(f"savevm: {said}")
        return f"savevm {name}"
    return _virsh("snapshot-create-as", life.guest.name, name)


def revert(life):
    """By libvirt, of its own; or by QEMU's monitor, behind libvirt's back."""
    names = virsh("snapshot-list", life.guest.name, "--name").stdout.split()
    if names and life.random.random() < 0.5:
        life.happened("revert", "restart")
        life.guest.disconnect()
        return _virsh("snapshot-revert", life.guest.name, life.random.choice(names), "--force")
    (first, *_) = life.guest.monitor.execute("query-block")
    snapshots = first.get("inserted", {}).get("image", {}).get("snapshots", [])
    if not snapshots:
        raise Refused("there is no internal snapshot")
    name = life.random.choice(snapshots)["name"]
    life.happened("revert")
    said = life.guest.monitor.line(f"loadvm {name}").strip()
    if said:
        raise Refused(f"loadvm {name}: {said}")
    return f"loadvm {name}"


def to_file_and_back(life):
    """The guest moves to a file, and from there into another QEMU."""
    was_paused = life.guest.status() == "paused"
    life.guest.disconnect()
    said = _virsh("managedsave", life.guest.name)
    life.guest.start(False)
    if was_paused:
        # Before it has gone on, QEMU has its images for inactive: it ends at the first write of the rig's to them.
        _virsh("resume", life.guest.name)
        _virsh("suspend", life.guest.name)
    life.happened("restart")
    return said


def restart(life):
    life.guest.stop()
    life.happened("restart")
    if life.random.random() < 0.5:
        life.guest.start(life.random.random() < 0.5)
        return "stopped and started"
    return "stopped"


def kill(life):
    life.guest.kill_qemu()
    life.guest.disconnect()
    life.happened("kill")
    wait_off(life)
    life.guest.start(life.random.random() < 0.5)
    return "QEMU is killed"


def wait_off(life):
    wait_for("libvirt to notice", lambda: life.guest.state() == "shut off", PATIENCE_SECONDS, pause=0.05)


def pause_or_resume(life):
    return _virsh("resume" if life.guest.status() == "paused" else "suspend", life.guest.name)


def restart_libvirtd(life):
    life.rig.libvirt.kill()
    life.rig.libvirt.start()
    return "libvirtd is killed, and started"


def checkpoint(life):
    return _virsh("checkpoint-create-as", life.guest.name, life.name("c"))


def remove_checkpoint(life):
    names = virsh("checkpoint-list", life.guest.name, "--name").stdout.split()
    if not names:
        raise Refused("there is no checkpoint")
    name = life.random.choice(names)
    if name.startswith("qdelta"):
        life.happened("checkpoint removed")
    return _virsh("checkpoint-delete", life.guest.name, name, *life.random.choice([[], ["--metadata"]]))


def our_bitmap(life):
    """An admin lays hands on a bitmap of a backup's, by QEMU's monitor."""
    nodes = life.guest.monitor.execute("query-named-block-nodes", flat=True)
    found = [(node["node-name"], bitmap["name"]) for node in nodes for bitmap in node.get("dirty-bitmaps", [])
             if bitmap.get("name", "").startswith("qdelta-")]
    if not found:
        raise Refused("there is no bitmap of a backup's")
    node, name = life.random.choice(found)
    kind = life.random.choice(["clear", "disable", "remove", "remake"])
    if kind == "remake":
        life.guest.monitor.execute("block-dirty-bitmap-remove", node=node, name=name)
        life.guest.monitor.execute("block-dirty-bitmap-add", node=node, name=name, persistent=True)
    else:
        life.guest.monitor.execute(f"block-dirty-bitmap-{kind}", node=node, name=name)
    life.happened(f"bitmap: {kind}")
    return f"{kind}: {name}"


RUNNING = [*[write] * 8, discard, resize, resize, overlay, overlay, commit, commit, commit, pull, copy, save_state,
           save_state, revert, revert, to_file_and_back, to_file_and_back, restart, restart, kill, pause_or_resume,
           restart_libvirtd, checkpoint, remove_checkpoint, our_bitmap]


# While it is stopped.

def start(life):
    life.guest.start(life.random.random() < 0.5)
    return "started"


def write_stopped(life):
    target = _target(life)
    path, index = _file(life, target), TARGETS.index(target)
    size = len(life.guest.content[index])
    offset = life.random.randrange(size)
    length = min(life.random.randrange(1, 64 * KIB), size - offset)
    command = f"write -q -P {life.random.randrange(1, 256)} {offset} {length}"
    done = run("qemu-io", "-f", life.guest.form(index, path), "-c", command, path, check=False)
    if done.returncode != 0:
        raise Refused(done.stdout.strip())
    life.happened("opened")
    return f"qemu-io {command} {path}"


def snapshot_stopped(life):
    target = _target(life)
    path = _file(life, target)
    if life.guest.form(TARGETS.index(target), path) != "qcow2":
        raise Refused("raw")
    info = json.loads(output("qemu-img", "info", "--output=json", path))
    names = [it["name"] for it in info.get("snapshots", [])]
    life.happened("opened")
    if names and life.random.random() < 0.6:
        life.happened("revert")
        return _tool("snapshot", "-a", life.random.choice(names), path)
    return _tool("snapshot", "-c", life.name("o"), path)


def resize_stopped(life):
    target = _target(life)
    path = _file(life, target)
    life.happened("resize", "shrink", "opened")
    return _tool("resize", "-q", "--shrink", "-f", life.guest.form(TARGETS.index(target), path), path,
                 f"{life.random.randrange(4, 16) * 512}K")


STOPPED = [start, start, start, write_stopped, write_stopped, snapshot_stopped, resize_stopped]
