"""Makes a real disk of real files of this machine, and changes parts of it."""

import functools
import os
import random
import subprocess

BLOCK = 65536
# Where a machine keeps files of all kinds: programs, libraries, texts, sources, compressed ones.
SOURCES = ("/usr", "/var/lib", "/opt", os.path.expanduser("~/.rustup"),
           os.path.expanduser("~/.cargo"))


def real_files(limit, seed=1):
    """Regular files of this machine, in an order of chance, `limit` bytes together."""
    found = []
    for source in SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    found.append((path, os.path.getsize(path)))
    random.Random(seed).shuffle(found)
    total, chosen = 0, []
    for path, size in found:
        if total + size <= limit:
            chosen.append(path)
            total += size
    if total < limit * 0.9:
        print(f"note: this machine has only {total / 2**30:.1f} GiB of files to put on the disk")
    return chosen


def make(image, gib, scratch):
    """A qcow2 image of an ext4 filesystem, twice as large as the `gib` of files in it."""
    stage, raw = os.path.join(scratch, "stage"), os.path.join(scratch, "stage.raw")
    limit = int(gib * 2**30)
    for path in real_files(limit):
        place = stage + path
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            subprocess.run(["cp", "--reflink=auto", path, place], check=True)
    with open(raw, "wb") as file:
        file.truncate(2 * limit)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", stage, raw], check=True)
    subprocess.run(["rm", "-rf", stage], check=True)
    subprocess.run(["qemu-img", "convert", "-q", "-O", "qcow2", raw, image], check=True)
    os.remove(raw)


@functools.cache
def pieces_to_write():
    """Files whose bytes are written over a disk: a walk through the machine, once."""
    return real_files(256 << 20, seed=2)


def data_blocks(image):
    """The blocks of the disk that hold data, by qemu-img's map."""
    import json
    out = subprocess.run(["qemu-img", "map", "--output=json", image], check=True,
                         stdout=subprocess.PIPE).stdout
    blocks = []
    for entry in json.loads(out):
        if entry["data"]:
            first = -(-entry["start"] // BLOCK)
            blocks.extend(range(first, (entry["start"] + entry["length"]) // BLOCK))
    return blocks


def change(image, blocks, share, seed, scratch, together=1):
    """Writes other real bytes over a share of the blocks, so many neighbours `together`."""
    rng = random.Random(seed)
    runs = [blocks[at:at + together] for at in range(0, len(blocks), together)]
    touched = sum(rng.sample(runs, max(1, int(len(runs) * share))), [])
    sources = pieces_to_write()
    pieces = os.path.join(scratch, "pieces")
    os.makedirs(pieces, exist_ok=True)
    commands = []
    for number, block in enumerate(touched):
        piece = os.path.join(pieces, str(number))
        with open(piece, "wb") as out:
            # A number that no other piece has: nothing here is to be found elsewhere.
            out.write(f"{seed} {number}\n".encode())
            while out.tell() < BLOCK:
                with open(rng.choice(sources), "rb") as file:
                    out.write(file.read(BLOCK - out.tell()))
        commands.append(f"write -q -s {piece} {block * BLOCK} {BLOCK}\n")
    subprocess.run(["qemu-io", "-f", "qcow2", image], input="".join(commands) + "quit\n", text=True,
                   check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", pieces], check=True)
