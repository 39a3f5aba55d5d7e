#!/usr/bin/env python3
"""Reads an encrypted repository without qdelta, by docs/encryption.md, archive-format.md and repository.md alone.

    reader.py REPO KEY-FILE OUTPUT

KEY-FILE holds the repository's identity. Every file is opened, and every point is written to OUTPUT as
DOMAIN+DISK@POINT.raw. What is read is proved: names, codes, checksums and digests. Python's standard library has
no X25519, ChaCha20, Zstandard and BLAKE3: the first two are below, as far as the code of a file needs them, and the
others are Debian's programs age, zstd and b3sum.
"""

import base64
import hashlib
import hmac
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib


def must(holds, what):
    if not holds:
        sys.exit(f"{what}")


def program(words, stdin=b""):
    done = subprocess.run(words, input=stdin, capture_output=True)
    must(done.returncode == 0, f"{words}: {done.stderr.decode()}")
    return done.stdout


# ---- cryptography


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def hkdf(secret, salt, info):
    """HKDF-SHA256 of 32 bytes."""
    return mac(mac(salt, secret), info + b"\x01")


def x25519(scalar, point):
    """RFC 7748, section 5."""
    p = 2**255 - 19
    k = bytearray(scalar)
    k[0] &= 248
    k[31] = k[31] & 127 | 64
    k = int.from_bytes(k, "little")
    x1 = int.from_bytes(point, "little") & (1 << 255) - 1
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def chacha20(key, counter, nonce):
    """One block of key stream: RFC 8439, section 2.3."""
    first = list(struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce))
    s = first[:]

    def mix(a, b, c, d):
        for x, y, z, by in (a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7):
            s[x] = s[x] + s[y] & 0xFFFFFFFF
            v = s[z] ^ s[x]
            s[z] = (v << by | v >> 32 - by) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            mix(column, column + 4, column + 8, column + 12)
        for column in range(4):
            mix(column, (column + 1) % 4 + 4, (column + 2) % 4 + 8, (column + 3) % 4 + 12)
    return struct.pack("<16I", *(a + b & 0xFFFFFFFF for a, b in zip(s, first)))


def open_short(key, sealed):
    """Opens at most 64 bytes of ChaCha20-Poly1305 with a nonce of zeros."""
    nonce, text, tag = bytes(12), sealed[:-16], sealed[-16:]
    one_time = chacha20(key, 0, nonce)
    r = int.from_bytes(one_time[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    padded = text + bytes(-len(text) % 16) + struct.pack("<QQ", 0, len(text))
    total = 0
    for at in range(0, len(padded), 16):
        total = (total + int.from_bytes(padded[at : at + 16] + b"\x01", "little")) * r % (2**130 - 5)
    total = total + int.from_bytes(one_time[16:32], "little") & (1 << 128) - 1
    must(total.to_bytes(16, "little") == tag, "the file key is sealed for somebody else")
    return bytes(a ^ b for a, b in zip(text, chacha20(key, 1, nonce)))


def bech32(text):
    """The bytes of a key as text (BIP 173); age itself proves its checksum."""
    digits = ["qpzry9x8gf2tvdw0s3jn54khce6mua7l".index(one) for one in text.lower().rpartition("1")[2][:-6]]
    bits = sum(value << 5 * place for place, value in enumerate(reversed(digits)))
    spare = len(digits) * 5 % 8
    return (bits >> spare).to_bytes(len(digits) * 5 // 8, "big")


def unpadded(text):
    return base64.b64decode(text + "=" * (-len(text) % 4))


class Keys:
    def __init__(self, path):
        lines = pathlib.Path(path).read_text().split("\n")
        self.path = path
        self.identity = bech32(next(line for line in lines if line.startswith("AGE-SECRET-KEY-1")))
        host = hkdf(self.identity, b"qdelta", b"host")
        self.codes = mac(host, b"files")
        self.iv = mac(host, b"names iv")
        self.stream = mac(host, b"names stream")

    def name(self, sealed, folder):
        """The plain part of a name, in the folder with this plain name."""
        if sealed.startswith("."):
            return sealed
        raw = base64.b32hexdecode(sealed.upper() + "=" * (-len(sealed) % 8))
        v, body = raw[:16], raw[16:]
        stream = b"".join(mac(self.stream, v + struct.pack(">I", n)) for n in range(len(body) // 32 + 1))
        part = bytes(a ^ b for a, b in zip(body, stream)).rstrip(b"\0")
        must(v == mac(self.iv, folder.encode() + b"\0" + part)[:16], f"{sealed} is none of our names")
        return part.decode()

    def prove(self, raw, name):
        """The code in the header of a file of age."""
        head = raw[: raw.index(b"\n---") + 4]
        lines = head.decode("latin-1").split("\n")
        must(lines[0] == "age-encryption.org/v1", f"{name} is no file of age")
        key, code = None, None
        for at, line in enumerate(lines):
            words = line.split(" ")
            if words[:2] == ["->", "X25519"]:
                share = unpadded(words[2])
                own = x25519(self.identity, b"\x09" + bytes(31))
                wrap = hkdf(x25519(self.identity, share), share + own, b"age-encryption.org/v1/X25519")
                key = open_short(wrap, unpadded(lines[at + 1]))
            elif words[:2] == ["->", "qdelta"]:
                code = unpadded(words[2])
        must(key and code == mac(self.codes, key + name.encode()), f"{name}: its code is not ours")
        line = raw[len(head) :].split(b"\n")[0].strip().decode()
        must(unpadded(line) == mac(hkdf(key, b"", b"header"), head), f"{name}: its header was changed")


def blake3(pieces, context=None):
    """The digests of many pieces at once."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        files = [f"{folder}/{number}" for number in range(len(pieces))]
        for file, piece in zip(files, pieces):
            pathlib.Path(file).write_bytes(piece)
        derive = ["--derive-key", context] if context else []
        said = b""
        for at in range(0, len(files), 1000):
            said += program(["b3sum", "--no-names", *derive, *files[at : at + 1000]])
    return [bytes.fromhex(line.decode()) for line in said.split()]


# ---- archives


class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        must(self.at + count <= len(self.data), "the metadata ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def string(self):
        return self.take(self.number(8)).decode()


def roaring(data):
    """The numbers of a bitmap in the portable serialization."""
    at = Cursor(data)
    cookie = at.number(4)
    runs = set()
    if cookie & 0xFFFF == 12347:
        count = (cookie >> 16) + 1
        flags = at.take((count + 7) // 8)
        runs = {n for n in range(count) if flags[n // 8] >> n % 8 & 1}
    else:
        must(cookie == 12346, "a bitmap that is none")
        count = at.number(4)
    heads = [(at.number(2), at.number(2) + 1) for _ in range(count)]
    if cookie == 12346 or count >= 4:
        at.take(4 * count)
    found = []
    for number, (key, cardinality) in enumerate(heads):
        if number in runs:
            low = []
            for _ in range(at.number(2)):
                begin, more = at.number(2), at.number(2)
                low += range(begin, begin + more + 1)
        elif cardinality <= 4096:
            low = [at.number(2) for _ in range(cardinality)]
        else:
            bits = int.from_bytes(at.take(8192), "little")
            low = [n for n in range(65536) if bits >> n & 1]
        found += [key << 16 | n for n in low]
    must(at.at == len(data), "a bitmap with something behind it")
    return found


class Archive:
    def __init__(self, data):
        must(data[:8] == b"qdelta\x1a\n" and data[8:12] == b"\1\0\0\0", "not an archive of version 1")
        (length,) = struct.unpack_from("<I", data, 12)
        head = 16 + length + 4
        (self.head_crc,) = struct.unpack_from("<I", data, head - 4)
        must(zlib.crc32(data[: head - 4]) == self.head_crc, "the header is damaged")
        self.metadata(Cursor(data[16 : head - 4]))
        footer = data[-48:]
        must(footer[:8] == b"QDSEALED" and footer[8:24] == self.id, "no footer of this archive")
        place, whole, size, crc = struct.unpack_from("<QQII", footer, 24)
        must(zlib.crc32(footer[:44]) == crc and whole == len(data), "the footer is damaged")
        must(place + size + 48 == len(data), "something between directory and footer")
        sections = self.directory(data, data[place : place + size])
        must(sections[7] == data[:head], "the copy of the header is another one")
        self.stored, self.zero, self.groups = (roaring(sections[kind]) for kind in (1, 2, 3))
        digests = [sections[5][at : at + 32] for at in range(0, len(sections[5]), 32)]
        must(len(digests) == len(self.stored), "not one digest for each block")
        must(len(sections[6]) == 32 * len(self.groups), "not one digest for each group")
        self.group_digests = {n: sections[6][32 * at :][:32] for at, n in enumerate(self.groups)}
        self.blocks = self.frames(data, head, sections[4])
        must(sorted(self.blocks) == self.stored, "the frames hold other blocks than the index says")
        found = blake3([self.blocks[block] for block in self.stored])
        must(found == digests, "a block has another digest")

    def metadata(self, at):
        self.id = at.take(16)
        self.point, self.domain, self.disk = at.string(), at.string(), at.string()
        self.kind, _tracker, _consistency = at.take(3)
        at.take(8)
        self.size, self.block_size, self.frame_blocks = at.number(8), at.number(4), at.number(4)
        self.parent = None
        if at.number(1):
            self.parent = (at.string(), at.string(), at.string(), at.take(32))
        at.string()
        for _ in range(at.number(8)):
            tag = at.number(2)
            must(tag < 0x8000, "an extension that has to be known")
            at.take(at.number(8))
        must(at.at == len(at.data), "metadata with something behind it")
        must((self.kind == 0) == (self.parent is None), "a full has no parent, and the others have one")

    def directory(self, data, directory):
        magic, count = struct.unpack_from("<4sI", directory)
        self.root = directory[8:40]
        must(magic == b"QDIX" and directory[40:56] == self.id, "no directory of this archive")
        must(struct.unpack_from("<II", directory, 56) == (self.head_crc, 0), "a directory of another header")
        must(len(directory) == 68 + 24 * count, "a directory of another length")
        (crc,) = struct.unpack_from("<I", directory, 64 + 24 * count)
        must(zlib.crc32(directory[:-4]) == crc, "the directory is damaged")
        sections = {}
        for number in range(count):
            kind, encoding, crc, offset, length = struct.unpack_from("<HHIQQ", directory, 64 + 24 * number)
            must(encoding == 0, "an encoding that is not known")
            content = data[offset : offset + length]
            must(len(content) == length and zlib.crc32(content) == crc, f"section {kind} is damaged")
            must(kind < 0x8000, "a section that has to be known")
            sections[kind] = content
        return sections

    def frames(self, data, at, table):
        """The blocks of all frames, by number. All Zstandard frames are one stream for its program."""
        packed, plain, order = [], {}, []
        for number in range(len(table) // 16):
            offset, first, length = struct.unpack_from("<QII", table, 16 * number)
            must(offset == at, "a gap between frames")
            head, payload = data[at : at + 36], data[at + 36 : at + 36 + length]
            at += 36 + length
            (magic, codec, shifts, low, own, size, mask, tag, crc, head_crc) = struct.unpack("<4sBBHIIQ4sII", head)
            must(magic == b"QDFR" and tag == self.id[:4] and zlib.crc32(head[:32]) == head_crc, "no frame")
            must((own, size, low) == (first, length, number & 0xFFFF), "a frame in the place of another one")
            must(zlib.crc32(payload) == crc, f"the frame of block {first} is damaged")
            must(1 << (shifts & 31) == self.block_size and 1 << (shifts >> 5) == self.frame_blocks, "another geometry")
            blocks = [first + bit for bit in range(64) if mask >> bit & 1]
            if codec == 0:
                must(length == len(blocks) * self.block_size, "a stored payload of another length")
                plain.update((block, payload[n * self.block_size :][: self.block_size]) for n, block in enumerate(blocks))
            else:
                must(codec == 1, "a codec that is not known")
                packed.append(payload)
                order += blocks
        out = program(["zstd", "-dc"], b"".join(packed)) if packed else b""
        must(len(out) == len(order) * self.block_size, "frames that decode to another length")
        plain.update((block, out[n * self.block_size :][: self.block_size]) for n, block in enumerate(order))
        return plain


def replay(chain):
    """The bytes of the disk after a chain, the full first; proved by the digests and the root."""
    size, disk = chain[-1].block_size, {}
    for archive in chain:
        must(archive.block_size == size, "another block size in a chain")
        for block in archive.zero:
            disk.pop(block, None)
        disk.update(archive.blocks)
        end = archive.size
        for block in [block for block in disk if (block + 1) * size > end]:
            kept = disk[block][: max(0, end - block * size)]
            disk[block] = kept + bytes(size - len(kept))
    count = -(-end // size)
    blocks = [block for block in sorted(disk)]
    digests = dict(zip(blocks, blake3([disk[block] for block in blocks])))
    (none,) = blake3([bytes(size)])
    groups = range(-(-count // 1024))
    pieces = [b"".join(digests.get(block, none) for block in range(n * 1024, n * 1024 + 1024)) for n in groups]
    found = blake3(pieces, "qdelta 2026 group digest v1")
    for group, digest in chain[-1].group_digests.items():
        must(found[group] == digest, f"group {group} has another digest")
    (root,) = blake3([struct.pack("<QI", end, size) + b"".join(found)], "qdelta 2026 root v1")
    must(root == chain[-1].root, "the disk has another root")
    return b"".join(disk.get(block, bytes(size)) for block in range(count))[:end]


def manifest(data, name):
    said = json.loads(data)
    digest = said.pop("digest")
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    must(blake3([text.encode()])[0].hex() == digest, f"{name} has another digest")
    must(said["format"] == 1, f"{name} has a format that is not known")
    return said


def main(repo, key, output):
    keys, repo = Keys(key), pathlib.Path(repo)
    archives, manifests, others = {}, [], 0

    def walk(path, plain):
        nonlocal others
        for entry in sorted(path.iterdir()):
            if entry.name.startswith(".") or not plain and entry.name in ("qdelta.toml", "keys"):
                continue
            name = plain + [keys.name(entry.name, "/".join(plain))]
            if entry.is_dir():
                walk(entry, name)
                continue
            keys.prove(entry.read_bytes(), "/".join(name))
            data = program(["age", "-d", "-i", keys.path, entry])
            if name[1] == "points":
                manifests.append(manifest(data, "/".join(name)))
            elif name[1] == "machine":
                content = program(["zstd", "-dc"], data)
                must(blake3([content])[0].hex() + ".zst" == name[2], f"{name} has another digest")
                others += 1
            else:
                archives["/".join(name)] = Archive(data)

    walk(repo, [])
    points = {}
    for said in manifests:
        for disk in said["disks"]:
            archive = archives[f"{said['domain']}/{disk['disk']}/{disk['archive']}"]
            must(archive.id.hex() == disk["archive_id"] and archive.root.hex() == disk["root"], "another archive")
            points[said["domain"], disk["disk"], said["point"], archive.root] = archive
    for (domain, disk, point, _), archive in points.items():
        chain = [archive]
        while chain[0].parent:
            chain.insert(0, points[chain[0].parent])
        pathlib.Path(output, f"{domain}+{disk}@{point}.raw").write_bytes(replay(chain))
    print(f"{len(points)} points, {len(archives)} archives, {others} other files")


if __name__ == "__main__":
    main(*sys.argv[1:])
