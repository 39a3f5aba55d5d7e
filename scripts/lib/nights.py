"""Nights of backups at times of their own, and what each program makes of them by the same rules."""

import datetime
import json
import os
import shutil

from . import measure
from .measure import QDELTA, Run, run
from .peers import Borg, Qdelta, Restic, fresh

DAYS, WEEKS = 7, 4
FAKETIME = "%Y-%m-%d %H:%M:%S"


def kept(nights):
    """The nights that 7 daily and 4 weekly points keep, as restic means them."""
    newest_of = lambda period: {period(night): night for night in nights}.values()
    weekly = sorted(newest_of(lambda night: night.isocalendar()[:2]))[-WEEKS:]
    return sorted(set(nights[-DAYS:]) | set(weekly))


class QdeltaNights(Qdelta):
    """Points are made under another clock; the newest one is of now."""

    def qdelta_at(self, night, *arguments):
        return run("faketime", "-f", night.strftime("@" + FAKETIME), QDELTA, "--repo", self.store,
                   "--json", "--quiet", *arguments, env={"TZ": "UTC"})

    def start(self):
        fresh(self.store)
        self.qdelta("init", "--time-zone", "UTC")

    def back_up(self, night):
        self.qdelta_at(night, "backup", self.image, "--disk", "disk", *self.flags)

    def retain(self, nights):
        return self.qdelta("prune", "--keep-daily", str(DAYS), "--keep-weekly", str(WEEKS),
                           "--grace", "0")

    def nights(self):
        points = json.loads(self.qdelta("points", "disk", "--json").output)["disks"][0]["points"]
        return [datetime.datetime.strptime(point["point"][:15], "%Y%m%dT%H%M%S")
                for point in points]


class QdeltaMerging(QdeltaNights):
    """Merges also where the usual rule leaves removed points, because that frees little."""
    name = "qdelta, merge_share 1"

    def start(self):
        super().start()
        settings = os.path.join(self.store, "qdelta.toml")
        with open(settings, encoding="utf-8") as file:
            text = file.read()
        with open(settings, "w", encoding="utf-8") as file:
            file.write(text.replace("merge_share = 25", "merge_share = 1"))


class ResticNights(Restic):
    """Its snapshots can be given a time, and its rules are the ones that are meant."""
    def start(self):
        fresh(self.store, os.path.join(self.place, "cache"))
        self.restic("init")

    def back_up(self, night):
        self.restic("backup", "--time", night.strftime(FAKETIME), self.image, sync=[self.store])

    def retain(self, nights):
        return self.restic("forget", "--prune", "--keep-daily", str(DAYS), "--keep-weekly",
                           str(WEEKS), sync=[self.store])

    def nights(self):
        listed = json.loads(self.restic("snapshots", "--json").output)
        return [datetime.datetime.strptime(it["time"][:19], "%Y-%m-%dT%H:%M:%S") for it in listed]


class BorgNights(Borg):
    """Its weekly rule counts only weeks whose newest point no other rule keeps: so fewer are asked
    of it, and the same points stay."""

    def start(self):
        fresh(self.store, os.path.join(self.place, "base"))
        self.borg("init", "-e", "none", self.store)

    def back_up(self, night):
        self.count += 1
        self.borg("create", "-C", "zstd,1", "--timestamp", night.strftime("%Y-%m-%dT%H:%M:%S"),
                  f"{self.store}::{self.count}", self.image, sync=[self.store])

    def retain(self, nights):
        weeks = len(kept(nights)) - DAYS
        pruned = self.borg("prune", "--keep-daily", str(DAYS), "--keep-weekly", str(weeks),
                           self.store)
        compacted = self.borg("compact", self.store, sync=[self.store])
        return Run(b"", pruned.seconds + compacted.seconds, pruned.cpu + compacted.cpu,
                   max(pruned.memory, compacted.memory))

    def nights(self):
        listed = json.loads(self.borg("list", "--json", self.store).output)["archives"]
        return [datetime.datetime.strptime(it["time"][:19], "%Y-%m-%dT%H:%M:%S") for it in listed]


PROGRAMS = (QdeltaNights, QdeltaMerging, ResticNights, BorgNights)


def history(programs, count, change):
    """Backs up the disk night by night with every program; gives the times of the nights."""
    # All clocks are UTC's.
    now = datetime.datetime.utcnow().replace(microsecond=0)
    nights = [now - datetime.timedelta(days=count - 1 - night) for night in range(count)]
    for program in programs:
        program.start()
    for number, night in enumerate(nights):
        if number:
            change()
        for program in programs:
            program.back_up(night)
        print(f"  night {number + 1} of {count}", flush=True)
    return nights


def rounds(programs, nights, runs):
    """Lets every program prune a copy of its backups, in turn: {program: [Run]}, and the bytes before
    and after of each."""
    samples, sizes = {}, {}
    for program in programs:
        os.rename(program.place, program.place + "-all")
    for number in range(runs):
        for program in programs:
            shutil.copytree(program.place + "-all", program.place)
            measure.sync_tree(program.place)
            measure.warm(program.store)
            before = program.size()
            spent = program.retain(nights)
            if (found := sorted(program.nights())) != kept(nights):
                raise SystemExit(f"{program.name} keeps other points than it is to: {found}")
            if number == runs - 1:
                program.verify()
            samples.setdefault(program.name, []).append(spent)
            sizes[program.name] = (before, program.size())
            print(f"  retention    {program.name:<24} {spent.seconds:8.2f} s {spent.cpu:8.2f} s CPU "
                  f"{spent.memory:6.0f} MiB, {before / 1e6:.0f} MB before, "
                  f"{program.size() / 1e6:.0f} after", flush=True)
            shutil.rmtree(program.place)
    for program in programs:
        os.rename(program.place + "-all", program.place)
    return samples, sizes
