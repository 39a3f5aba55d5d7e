"""What a kept clone costs whoever goes on writing to the file that it is of."""

import json
import os
import statistics
import time

from ..guest import clone
from ..run import Failure, output, run

SIZE_MIB = 512
FILL_MIB = 1024
WRITES_MIB = 32
ROUNDS = 3


def clones(rig):
    """Random 4 KiB writes to an image with and without a kept clone: speed, space, extents (fio)."""
    for kind, hint in (("xfs", None), ("xfs", "1m"), ("btrfs", None)):
        filesystem = rig.filesystem(kind, size="2G", name=f"{kind}-{hint}")
        image = os.path.join(filesystem.mount, "image")
        if hint:
            # New extents of a shared file come in pieces of this size.
            run("xfs_io", "-c", f"cowextsize {hint}", filesystem.mount)
        name = kind + (f" with cowextsize {hint}" if hint else "")
        _measure(rig, name, image, ROUNDS * rig.effort)
        filesystem.defragment([image])
        rig.say(f"{name}: {_extents(image)} extents after defragmentation")
        filesystem.close()


def _measure(rig, name, image, rounds):
    # The loop device's own file takes up its space now: a disk does not allocate when it is written.
    for path, size in ((image + ".filling", FILL_MIB), (image, SIZE_MIB)):
        with open(path, "wb") as file:
            for _ in range(size):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
    os.remove(image + ".filling")
    alone, first, again, cloned, held = [], [], [], [], 0
    kept, extents_before = image + ".clone", _extents(image)
    for number in range(rounds):
        # Always the same blocks: without a clone, and twice with one. The first time they go
        # elsewhere.
        _write(image, number)
        alone.append(_write(image, number))
        begin = time.monotonic()
        clone(image, kept)
        cloned.append((time.monotonic() - begin) * 1000)
        free = os.statvfs(os.path.dirname(image)).f_bfree
        first.append(_write(image, number))
        again.append(_write(image, number))
        run("sync", "-f", image)
        status = os.statvfs(os.path.dirname(image))
        held = (free - status.f_bfree) * status.f_frsize >> 20
        os.remove(kept)
        run("sync", "-f", image)
    ratios = [statistics.median(x / y for x, y in zip(some, alone)) for some in (first, again)]
    rig.say(f"{name}: {statistics.median(alone):.0f} writes/s alone; first writes with a clone "
            f"{ratios[0]:.2f} x, second ones {ratios[1]:.2f} x as many; {held} MiB held for "
            f"{WRITES_MIB} MiB written")
    extents = _extents(image)
    begin = time.monotonic()
    clone(image, kept)
    rig.say(f"{name}: a clone took {cloned[0]:.0f} ms with {extents_before} extents, and "
            f"{(time.monotonic() - begin) * 1000:.0f} ms with {extents} after {rounds} rounds")
    os.remove(kept)
    if extents <= extents_before:
        raise Failure("writing to a cloned file did not split a single extent: no clone was kept")


def _write(image, seed):
    """Writes to random places, the same ones for the same seed; gives writes per second."""
    said = output("fio", "--name=guest", f"--filename={image}", "--rw=randwrite", "--bs=4k",
                  "--direct=1", "--ioengine=libaio", "--iodepth=8", "--output-format=json",
                  f"--size={SIZE_MIB}m", f"--io_size={WRITES_MIB}m", f"--randseed={seed}",
                  "--norandommap=1", "--overwrite=1", "--end_fsync=1")
    job = json.loads(said[said.index("{"):])["jobs"][0]["write"]
    return job["total_ios"] / (job["runtime"] / 1000)


def _extents(image):
    return int(output("filefrag", image).split(": ")[1].split()[0])
