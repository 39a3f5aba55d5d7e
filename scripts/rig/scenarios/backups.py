"""Points of running guests, over and over, and every one of them restored."""

from ..run import Failure
from ..points import Chain

ROUNDS = 3


def backups(rig):
    """Full, increments and restores of two-disk guests that write all the time, on XFS and Btrfs."""
    ways = [("xfs", "none", ""), ("btrfs", "writeback", "compress=zstd")]
    for (kind, cache, options), qemu in zip(ways, rig.qemu_versions()):
        filesystem = rig.filesystem(kind, options=options)
        guest = rig.guest(f"on-{kind}", rig.two_disks(filesystem.mount, cache=cache, chain=True),
                          emulator=qemu.program("qemu-system-x86_64"))
        chain = Chain(rig, guest, f"repo-{kind}")
        for round_number in range(ROUNDS * rig.effort):
            guest.wait_for_records(100)
            if round_number > 1:
                filesystem.defragment([disk.path for disk in guest.disks])
            point = chain.backup("--anchor", "reflink")
            expect(point.consistency == "filesystem-quiesced", "a point is not quiesced", point)
            kind_expected = "full" if round_number == 0 else "incremental"
            expect(all(disk["kind"] == kind_expected for disk in point.result["disks"]),
                   f"a point is not {kind_expected}", point)
            trackers = {disk["tracker"] for disk in point.result["disks"]}
            expect(round_number == 0 or trackers == {"reflink"},
                   f"a point of a running guest was made by {trackers}", point)
            expect(guest.freeze_status() == "thawed", "the guest was left frozen", point)
        guest.pause()
        _equal_to_a_full(chain)
        for number, point in enumerate(chain.points):
            last = number == len(chain.points) - 1
            newest = chain.check(point, boot=number == 0 or last or rig.effort > 1)
            rig.say(f"{kind}, QEMU {qemu.version}: {point.time} is whole up to record {newest}; "
                    f"{point.stood_still()}")
        guest.forget()
        filesystem.close()


def _equal_to_a_full(chain):
    """What was pieced together from claims is what a reader of everything finds, bit for bit."""
    increment = chain.backup("--anchor", "reflink", "--consistency", "crash")
    full = chain.backup("--consistency", "crash", "--kind", "full")
    pairs = list(zip(increment.result["disks"], full.result["disks"]))
    expect(len(pairs) == 2 and all(one["root"] == two["root"] for one, two in pairs),
           f"after increments the disks are not what {full.result} found", increment)


def expect(condition, what, point):
    if not condition:
        raise Failure(f"{what}: {point.result}")
