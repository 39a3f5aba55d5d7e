"""A monitor of QEMU's, spoken to by its own socket: whoever does is the admin, and writes in the guest's place."""

import json
import socket

from .run import PATIENCE_SECONDS, Failure


class Refused(Exception):
    """QEMU will not do what it was told to; it is in order, and goes on."""


class Died(Exception):
    """QEMU has ended by itself, as if it had been killed."""


class Monitor:
    """A connection to the monitor behind a socket."""

    def __init__(self, path):
        """Fails with an `OSError` where nobody listens yet."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE_SECONDS)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        # Of its own: a file for both forgets what it has read when something is written.
        self._lines = self._socket.makefile("rb")
        self.execute("qmp_capabilities")

    def execute(self, order, **arguments):
        """One QMP command; underscores in the names of its arguments are hyphens."""
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._socket.sendall(json.dumps({"execute": order, "arguments": arguments}).encode() + b"\n")
            while True:
                line = self._lines.readline()
                if not line:
                    raise Died(f"QEMU ended at {order} {arguments}")
                answer = self._parsed(line)
                if "error" in answer:
                    raise Refused(answer["error"]["desc"])
                if "return" in answer:
                    return answer["return"]
        except TimeoutError as silence:
            # It has not ended: a monitor that hangs is no kill.
            raise Failure(f"QEMU gave no answer in {PATIENCE_SECONDS} s: {order} {arguments}") from silence
        except OSError as broken:
            raise Died(f"QEMU ended at {order} {arguments}: {broken}") from broken

    @staticmethod
    def _parsed(line):
        try:
            return json.loads(line)
        except ValueError as odd:
            # QEMU was cut off in the middle of a line; or it is no answer, and nobody foresaw that.
            if not line.endswith(b"\n"):
                raise Died(f"QEMU ended in an answer: {line[-200:]}") from odd
            raise Failure(f"QEMU says: {line[:2000]}") from odd

    def line(self, text):
        """One command of the human monitor; gives what it says."""
        return self.execute("human-monitor-command", command_line=text)

    def close(self):
        """Others can connect then."""
        self._lines.close()
        self._socket.close()
