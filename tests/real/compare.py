"""Two servers, the same bytes, and whether their answers are the same. Used by the chapter `replies`."""

import os
import select
import shutil
import socket
import subprocess

from harness import Broken, encode, free, tool, wait_for


class Reference:
    """A redis-server of our own, with a baton's limits and nothing on disk."""

    def __init__(self, world, *words):
        self.port = world.next_base() + 9
        while not free(self.port):
            self.port += 1
        self.folder = os.path.join(world.folder, f"reference-{self.port}")
        self.words = words
        self.process = None

    def __enter__(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        command = [
            tool("redis-server"),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            self.folder,
            "--save",
            "",
            "--appendonly",
            "no",
            "--databases",
            "1",
            "--proto-max-bulk-len",
            "8388608",
            "--loglevel",
            "warning",
            *self.words,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def up():
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return True
            except OSError:
                return False

        wait_for(up, 10, "redis-server does not start")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


# ---- replies as trees: (mark, payload), with a list of trees as the payload of what holds others ----

SINGLE = b"+-:_#,("
BLOB = b"$=!"
MANY = {b"*": 1, b"~": 1, b">": 1, b"%": 2}


class Short(Exception):
    """The bytes end inside a reply."""


def tree(data, at=0):
    """The reply that starts at `at`, and where it ends."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise Short()
    mark, line = data[at : at + 1], data[at + 1 : end]
    at = end + 2
    if mark in (b"$", b"=", b"!"):
        size = int(line)
        if size < 0:
            return (mark, None), at
        if len(data) < at + size + 2:
            raise Short()
        if data[at + size : at + size + 2] != b"\r\n":
            raise Broken(f"no line end behind a bulk string: {data[at - 20 : at + size + 2][:100]!r}")
        return (mark, data[at : at + size]), at + size + 2
    if mark in MANY:
        count = int(line)
        if count < 0:
            return (mark, None), at
        parts = []
        for _ in range(count * MANY[mark]):
            part, at = tree(data, at)
            parts.append(part)
        return (mark, parts), at
    if mark and mark in SINGLE:
        return (mark, line), at
    raise Broken(f"no reply: {data[end - 60 if end > 60 else 0 : end + 20]!r}")


def trees(data):
    """All whole replies, and what is left over."""
    found, at = [], 0
    while at < len(data):
        try:
            one, end = tree(data, at)
        except Short:
            break
        found.append((one, data[at:end]))
        at = end
    return found, data[at:]


class Link:
    """A connection that gives back bytes."""

    def __init__(self, port, timeout=20.0):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def rest(self):
        """Everything until the server closes."""
        while True:
            try:
                got = self.socket.recv(1 << 18)
            except ConnectionResetError:
                got = b""
            if not got:
                return self.data
            self.data += got

    def reply(self):
        """One reply, or None at the end of the connection."""
        while True:
            try:
                one, end = tree(self.data)
                raw, self.data = self.data[:end], self.data[end:]
                return one, raw
            except Short:
                pass
            try:
                got = self.socket.recv(1 << 18)
            except ConnectionResetError:
                got = b""
            if not got:
                return None
            self.data += got

    def do(self, *words):
        self.send(encode(*words))
        return self.reply()


def converse(port, pieces):
    """Sends the pieces one after the other and reads all along until the server closes."""
    with Link(port) as link:
        link.socket.setblocking(False)
        queue, got = list(pieces), bytearray()
        while True:
            readable, writable, _ = select.select([link.socket], [link.socket] if queue else [], [], 20)
            if not readable and not writable:
                raise Broken(f"silence behind {len(got)} bytes: ...{bytes(got[-200:])!r}")
            try:
                if readable:
                    piece = link.socket.recv(1 << 18)
                    if not piece:
                        return bytes(got)
                    got += piece
                if writable and queue:
                    sent = link.socket.send(queue[0])
                    queue[0] = queue[0][sent:]
                    if not queue[0]:
                        queue.pop(0)
            except BrokenPipeError:
                queue = []
            except ConnectionResetError:
                return bytes(got)
