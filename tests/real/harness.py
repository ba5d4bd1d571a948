"""What every check on real processes shares: the report, a sandbox of nodes, a RESP client that judges nothing.

The client is our own on purpose: a client library retries, reconnects and renames errors, and a checker has to know
exactly which command was answered with what, and which one was not answered at all.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Skip(Exception):
    """The check cannot be made here; the text says what is missing."""


class Broken(Exception):
    """A promise is broken."""


def want(condition, text):
    if not condition:
        raise Broken(text)


class Report:
    """One line per check, and the counts."""

    def __init__(self, only=None):
        self.passed = self.failed = self.skipped = 0
        self.only = only
        self.begin = time.monotonic()

    def check(self, name, function, *args):
        if self.only and self.only not in name:
            return
        begin = time.monotonic()
        try:
            note = function(*args) or ""
            self.passed += 1
            word = "ok  "
        except Skip as skip:
            self.skipped += 1
            word, note = "SKIP", f"NOT CHECKED: {skip}"
        except Exception as error:  # a check that cannot finish has failed, whatever the reason
            self.failed += 1
            word, note = "FAIL", f"{type(error).__name__}: {error}"
            if not isinstance(error, Broken):
                traceback.print_exc()
        took = time.monotonic() - begin
        print(f"{word} {name} ({took:.1f} s){': ' if note else ''}{note}", flush=True)

    def end(self):
        took = time.monotonic() - self.begin
        print(f"took {took:.0f} s")
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped", flush=True)
        return 1 if self.failed else 0


# ---- RESP ----


class Error(str):
    """An error reply; its first word decides."""

    @property
    def word(self):
        return self.split(" ", 1)[0]


class Gone(Exception):
    """The connection ended; `answered` replies had come before."""


def encode(*words):
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        if isinstance(word, str):
            word = word.encode()
        elif isinstance(word, int):
            word = b"%d" % word
        parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
    return b"".join(parts)


class Client:
    """A blocking connection. Replies come back as bytes, int, None, list or Error; nothing is retried."""

    def __init__(self, port, timeout=15.0, host="127.0.0.1"):
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.at = 0

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Gone(str(error)) from error

    def _more(self):
        try:
            got = self.socket.recv(1 << 18)
        except OSError as error:
            raise Gone(f"{type(error).__name__} {error}") from error
        if not got:
            raise Gone("closed")
        self.buffer = self.buffer[self.at :] + got
        self.at = 0

    def _line(self):
        while True:
            end = self.buffer.find(b"\r\n", self.at)
            if end >= 0:
                line = self.buffer[self.at : end]
                self.at = end + 2
                return line
            self._more()

    def read(self):
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return Error(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            while len(self.buffer) - self.at < size + 2:
                self._more()
            value = self.buffer[self.at : self.at + size]
            self.at += size + 2
            return value
        if kind == b"*":
            count = int(rest)
            return None if count < 0 else [self.read() for _ in range(count)]
        raise Broken(f"no RESP2 reply: {line[:80]!r}")

    def do(self, *words):
        self.send(encode(*words))
        return self.read()

    def all(self, commands):
        """Sends commands together. Gives (replies, whole): fewer replies when the connection ended."""
        replies = []
        try:
            self.send(b"".join(encode(*command) for command in commands))
            for _ in commands:
                replies.append(self.read())
        except Gone:
            return replies, False
        return replies, True


# ---- nodes ----


class Node:
    def __init__(self, baton, folder, node, port):
        self.baton, self.folder, self.id, self.port = baton, folder, node, port
        self.peer_port, self.http_port = port + 100, port + 200

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def run(self, *words, timeout=60, ok=None):
        """A `baton` command on this node; with `ok` its exit code must match."""
        return run(self.baton, *words, "-D", self.folder, timeout=timeout, ok=ok)

    def pid(self):
        try:
            with open(self.path("baton.pid"), encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return pid if b"run" in file.read().split(b"\0") else None
        except (OSError, ValueError):
            return None

    def alive(self):
        """Whether the process lives; a killed one that waits to be reaped is dead."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                return file.read().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    def kill(self):
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.alive(), 20, f"node {self.id} does not die")

    def start(self, *words, timeout=60, ok=0):
        return self.run("start", *words, timeout=timeout, ok=ok)

    def launch(self, *words):
        return self.run("start", "--no-wait", *words, ok=0)

    def ask(self, timeout=5.0, **request):
        """One admin request over the socket; None when the node does not answer."""
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(timeout)
                link.connect(self.path("admin.sock"))
                link.sendall(json.dumps({"v": 1, "op": f"real-{time.monotonic_ns()}", **request}).encode() + b"\n")
                line = b""
                while not line.endswith(b"\n"):
                    got = link.recv(65536)
                    if not got:
                        return None
                    line += got
                return json.loads(line)
        except (OSError, ValueError):
            return None

    def status(self):
        """The node's own row."""
        answer = self.ask(verb="status")
        return answer["result"] if answer and answer.get("ok") else None

    def role(self):
        row = self.status()
        return (row["role"], row["state"]) if row else ("Down", "")

    def client(self, **options):
        return Client(self.port, **options)

    def log(self):
        try:
            with open(self.path("log", "baton.log"), encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""


def run(baton, *words, timeout=60, ok=None, env=None):
    done = subprocess.run(
        [baton, *map(str, words)], capture_output=True, text=True, timeout=timeout, env=env, check=False
    )
    if ok is not None and done.returncode != ok:
        shown = " ".join(map(str, words))
        raise Broken(f"baton {shown}: exit {done.returncode}, not {ok}: {(done.stderr or done.stdout).strip()[:600]}")
    return done


def wait_for(condition, seconds, text, step=0.02):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"{text() if callable(text) else text} (waited {seconds} s)")
        time.sleep(step)


class Sandbox:
    """A cluster of a check. On leaving, the nodes are gone; the folder stays when the check failed."""

    def __init__(self, world, name, nodes, *words, base=None, config=None):
        self.world, self.name, self.config = world, name, config or {}
        self.folder = os.path.join(world.folder, name)
        shutil.rmtree(self.folder, ignore_errors=True)
        base = base or world.next_base()
        self.words = ["--nodes", nodes, "--base-port", base, *words]
        self.nodes = [Node(world.baton, os.path.join(self.folder, str(n)), n, base + n) for n in range(1, nodes + 1)]

    def up(self):
        run(self.world.baton, "sandbox", "up", "--dir", self.folder, *self.words, timeout=120, ok=0)
        return self

    def __enter__(self):
        try:
            self.up()
            if self.config:
                self.configure()
            return self
        except BaseException:
            self.down()
            raise

    def configure(self):
        """Other values for keys of every node's configuration."""
        run(self.world.baton, "sandbox", "down", "--dir", self.folder, ok=0)
        for node in self.nodes:
            with open(node.path("baton.toml"), encoding="utf-8") as file:
                lines = [line for line in file.read().split("\n") if line.split(" ")[0] not in self.config]
            with open(node.path("baton.toml"), "w", encoding="utf-8") as file:
                file.write("\n".join([f"{key} = {value}" for key, value in self.config.items()] + lines))
        self.up()

    def __exit__(self, kind, *_):
        self.down()
        complaint = self.panics()
        if kind is None and complaint:
            raise Broken(complaint)
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def panics(self):
        """What no log may ever hold."""
        for node in self.nodes:
            for line in node.log().splitlines():
                if "panicked" in line:
                    return f"node {node.id} panicked: {line.strip()[:300]} ({node.path('log', 'baton.log')})"
        return None

    def down(self):
        for node in self.nodes:
            if node.alive():
                node.kill()

    def node(self, number):
        return self.nodes[number - 1]

    def primary(self):
        for node in self.nodes:
            if node.role() == ("Primary", "Normal"):
                return node
        return None

    def wait_primary(self, seconds=20):
        return wait_for(self.primary, seconds, lambda: f"no primary: {self.roles()}")

    def roles(self):
        return ", ".join(f"{node.id} {' '.join(node.role())}" for node in self.nodes)

    def wait_standby(self, node, seconds=20):
        """The node streams again."""
        wait_for(
            lambda: node.role() == ("Standby", "Normal"), seconds, lambda: f"node {node.id} is no standby: {self.roles()}"
        )

    def wait_caught_up(self, node, seconds=20):
        """The node has applied what the primary had committed when this was asked."""
        primary = self.wait_primary()
        mark = primary.status()["committed_lsn"]

        def there():
            row = node.status()
            return row and row["role"] == "Standby" and row["applied_lsn"] >= mark

        wait_for(there, seconds, lambda: f"node {node.id} does not reach {mark}: {node.status()}, {self.roles()}")


class World:
    """Where the binary and the folders are, and which mode this is."""

    def __init__(self, baton, folder, mode, base, seed):
        self.baton, self.folder, self.mode, self.seed = baton, folder, mode, seed
        self.base = base

    @property
    def long(self):
        return self.mode == "long"

    def next_base(self):
        """Ports of their own for every sandbox: none waits for another's to be free."""
        while True:
            base, self.base = self.base, self.base + 10
            if self.base % 100 >= 90:
                self.base += 310 - self.base % 100
            if all(free(base + offset + node) for offset in (0, 100, 200) for node in range(1, 6)):
                return base


def free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def tool(name):
    path = shutil.which(name)
    if path is None:
        raise Skip(f"{name} is not installed (tools/setup-ci)")
    return path


def announce(text):
    print(f"\n-- {text}", flush=True)


if __name__ == "__main__":
    sys.exit("run tools/real")
