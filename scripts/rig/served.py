"""The server of a guest's points, started as systemd does it with the units of `qdelta restore --instant`."""

import os
import shlex
import signal
import socket
import subprocess

from .run import PATIENCE_SECONDS, Failure, run, wait_for


def _value(unit, key):
    """What a unit says of a key."""
    with open(unit, encoding="utf-8") as file:
        (value,) = [line.split("=", 1)[1].rstrip("\n") for line in file if line.startswith(f"{key}=")]
    return value


class Server:
    """`qdelta serve`, started and ended as often as a test likes."""

    def __init__(self, rig, instant):
        units = {os.path.splitext(unit)[1]: unit for unit in instant["units"]}
        run("systemd-analyze", "verify", *instant["units"])
        # The socket is systemd's, and so is the name of the account that it is for.
        command = _value(units[".service"], "ExecStart").replace("%%", "%").replace("$$", "$")
        self._socket = _value(units[".socket"], "ListenStream").replace("%%", "%")
        self._command = ["systemd-socket-activate", "-l", self._socket, *shlex.split(command)]
        self._log = os.path.join(rig.folder, "serve.log")
        self._process = None
        rig.servers.append(self)

    def start(self):
        os.makedirs(os.path.dirname(self._socket), exist_ok=True)
        if os.path.exists(self._socket):
            os.remove(self._socket)
        with open(self._log, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for("the server of the point", self._answers, PATIENCE_SECONDS)
        return self

    def _answers(self):
        if self._process.poll() is not None:
            with open(self._log, encoding="utf-8") as log:
                raise Failure(f"the server ended with {self._process.returncode}: {log.read()[-2000:]}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            return client.connect_ex(self._socket) == 0

    def kill(self):
        """Nothing that it does is brought to an end."""
        self._end(signal.SIGKILL)

    def stop(self):
        self._end(signal.SIGTERM)

    def _end(self, sign):
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(sign)
        process.wait(PATIENCE_SECONDS)

    def forget(self):
        """A server that has read nothing yet."""
        self.stop()
        self.start()

    def peak_mib(self):
        """The most memory that it has had, in MiB."""
        with open(f"/proc/{self._process.pid}/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["VmHWM"].split()[0]) / 1024
