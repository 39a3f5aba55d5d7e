"""What all snapshot commands have in common: the request, the answer, and other programs."""

import json
import re
import subprocess
import sys

PROTOCOL = 2
# What qdelta calls things: "qdelta-", the point, a dash, and the owner's eight digits.
NAME = r"qdelta-\d{8}T\d{6}\.\d{3}Z-([0-9a-f]{8})"


class Problem(Exception):
    """Something that the admin must know; the call fails with it."""


def tool(*command, check=True):
    """Runs a program; gives what it prints. Its errors are the call's."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, check=False,
                              stdin=subprocess.DEVNULL)
    except FileNotFoundError as missing:
        raise Problem(f"{command[0]} is not installed") from missing
    if check and done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise Problem(f"{' '.join(command[:2])}: {said or done.returncode}")
    return done.stdout


def is_owned(name, request):
    """Whether something that is called so was made by a backup of this guest into this repository."""
    ours = re.search(rf"{NAME}$", name)
    return bool(ours) and ours.group(1) == request["owner"]


def answer_files(request, place):
    """The answer to `snapshot` where each file is to be read at `place(file)`."""
    return {"disks": [
        {"disk": disk["disk"], "files": [{"file": file, "read": place(file)} for file in disk["files"]]}
        for disk in request["disks"]]}


def main(verbs):
    """Reads the request, does what it asks for, and answers. `--check FILE…` asks by hand whether the command
    would work for these images or devices."""
    if len(sys.argv) > 2 and sys.argv[1] == "--check":
        by_hand(verbs["check"], sys.argv[2:])
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb not in ("check", "recover", "prepare", "snapshot", "release"):
        print(sys.modules["__main__"].__doc__, file=sys.stderr)
        sys.exit(2)
    answer, status = {"protocol": PROTOCOL}, 0
    if verb == "check":
        # Nothing is done before the request has come.
        answer["waits"] = True
    try:
        request = json.load(sys.stdin)
        if request.get("protocol") != PROTOCOL:
            raise Problem(f"a request of version {request.get('protocol')} of the protocol")
        answer.update(verbs.get(verb, lambda _: {})(request) or {})
    except Problem as problem:
        print(problem, file=sys.stderr)
        status = 1
    except Exception as problem:
        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        status = 1
    print(json.dumps(answer))
    sys.exit(status)


def by_hand(check, files):
    """Checks images or devices that the admin names."""
    disks = [{"disk": file, "files": [file]} for file in files]
    try:
        check({"disks": disks, "state": "running", "owner": ""})
    except (Problem, OSError) as problem:
        sys.exit(str(problem))
    print(f"it would work for {', '.join(files)}")
    sys.exit(0)
