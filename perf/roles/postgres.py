"""PostgreSQL beside baton: one primary, two standbys, quorum commit, and promotions after kill -9 under load."""

import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

USER = "postgres"
# A promotion is measured with 50 writers before the kill; afterwards these probes knock every millisecond.
CLIENTS = 50
PATIENCE = 20.0
TABLE = "CREATE TABLE w (k int PRIMARY KEY, v text); INSERT INTO w SELECT g, 'x' FROM generate_series(1, 1000) g"
WRITE = "UPDATE w SET v = md5(random()::text) WHERE k = {}"
# In PostgreSQL's favour: a standby that lost its source looks again at once, not after five seconds.
SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 120
shared_buffers = '128MB'
wal_log_hints = on
wal_keep_size = '1GB'
hot_standby = on
synchronous_commit = on
synchronous_standby_names = 'ANY 1 (n1, n2, n3)'
wal_retrieve_retry_interval = '100ms'
wal_receiver_status_interval = '1s'
log_min_messages = warning
"""


class Refused(Exception):
    pass


class Session:
    """The simple query protocol, without a password, and nothing more."""

    def __init__(self, port, timeout=10.0):
        self.link = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        words = b"".join(word.encode() + b"\0" for word in ("user", USER, "database", "postgres")) + b"\0"
        self.link.sendall(struct.pack("!ii", len(words) + 8, 196608) + words)
        self.answer()

    def answer(self):
        rows, error = [], None
        while True:
            kind, size = struct.unpack("!ci", self.exactly(5))
            body = self.exactly(size - 4)
            if kind == b"D":
                row, at = [], 2
                for _ in range(struct.unpack("!h", body[:2])[0]):
                    length = struct.unpack("!i", body[at : at + 4])[0]
                    at += 4
                    row.append(None if length < 0 else body[at : at + length].decode())
                    at += max(length, 0)
                rows.append(row)
            elif kind == b"E":
                error = body.replace(b"\0", b" ").decode(errors="replace")
                if b"VFATAL" in body:
                    raise Refused(error)
            elif kind == b"Z":
                if error:
                    raise Refused(error)
                return rows

    def exactly(self, size):
        data = b""
        while len(data) < size:
            got = self.link.recv(size - len(data))
            if not got:
                raise Refused("the connection ended")
            data += got
        return data

    def do(self, text):
        body = text.encode() + b"\0"
        self.link.sendall(b"Q" + struct.pack("!i", len(body) + 4) + body)
        return self.answer()


def binaries():
    """The folder with the server's programs, or None."""
    base = "/usr/lib/postgresql"
    if os.geteuid() != 0 or not os.path.isdir(base):
        return None
    for version in sorted(os.listdir(base), key=lambda name: -float(name)):
        if os.path.exists(os.path.join(base, version, "bin", "pg_ctl")):
            return os.path.join(base, version, "bin")
    return None


class Server:
    def __init__(self, cluster, number):
        self.cluster, self.number, self.port = cluster, number, cluster.base + number
        self.name = f"n{number}"
        self.data = os.path.join(cluster.folder, self.name)

    def start(self):
        self.cluster.tool(
            "pg_ctl", "-D", self.data, "-l", self.data + ".log", "-w", "-o", f"-p {self.port} -c cluster_name={self.name}", "start"
        )

    def do(self, text):
        session = Session(self.port)
        try:
            return session.do(text)
        finally:
            session.link.close()

    def kill(self):
        """The server and its children, as when a machine dies: those that this run started, by their ids."""
        with open(os.path.join(self.data, "postmaster.pid"), encoding="ascii") as file:
            master = int(file.readline())
        with open(f"/proc/{master}/task/{master}/children", encoding="ascii") as file:
            children = [int(word) for word in file.read().split()]
        for pid in [master, *children]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        while any(os.path.exists(f"/proc/{pid}") for pid in [master, *children]):
            time.sleep(0.001)

    def received(self):
        return int(self.do("SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')")[0][0])

    def follow(self, source):
        return f"ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={source.port} user={USER}'"


class Cluster:
    def __init__(self, bin_folder, parent, base=25400):
        self.bin, self.base = bin_folder, base
        owner = pwd.getpwnam(USER)
        self.uid, self.gid = owner.pw_uid, owner.pw_gid
        self.folder = tempfile.mkdtemp(prefix="roles-pg-", dir=self.reachable(parent))
        os.chown(self.folder, self.uid, self.gid)
        self.servers = [Server(self, number) for number in (1, 2, 3)]
        self.load = None
        self.leads = 1

    def reachable(self, parent):
        done = subprocess.run(["test", "-x", parent], user=self.uid, group=self.gid, check=False)
        return parent if done.returncode == 0 else "/var/tmp"

    def tool(self, name, *words, check=True):
        done = subprocess.run(
            [os.path.join(self.bin, name), *words], user=self.uid, group=self.gid, extra_groups=[], cwd=self.folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{name} {' '.join(words)}: {done.stdout[-600:]}")
        return done.stdout

    def up(self):
        first = self.servers[0]
        self.tool("initdb", "-D", first.data, "-U", USER, "-A", "trust", "--no-sync")
        with open(os.path.join(first.data, "postgresql.conf"), "a", encoding="utf-8") as file:
            file.write(SETTINGS)
        first.start()
        for server in self.servers[1:]:
            source = f"host=127.0.0.1 port={first.port} user={USER}"
            self.tool("pg_basebackup", "-D", server.data, "-d", source, "-R", "-c", "fast", "-X", "stream")
            server.start()
        for statement in TABLE.split("; "):
            first.do(statement)
        with open(os.path.join(self.folder, "write.sql"), "w", encoding="utf-8") as file:
            file.write("\\set k random(1, 1000)\n" + WRITE.format(":k") + ";\n")

    def write_to(self, server):
        self.load = subprocess.Popen(
            [os.path.join(self.bin, "pgbench"), "-n", "-c", str(CLIENTS), "-j", "2", "-T", "3600", "-f", "write.sql",
             "-h", "127.0.0.1", "-p", str(server.port), "-U", USER, "postgres"],
            user=self.uid, group=self.gid, extra_groups=[], cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )

    def streaming(self, primary, names, patience=60):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            rows = primary.do("SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
            if set(names) <= {row[0] for row in rows}:
                return
            time.sleep(0.005)
        raise RuntimeError(f"{names} do not stream from {primary.name}")

    def once(self):
        primary, *standbys = [server for server in self.servers if server.number == self.leads] + [
            server for server in self.servers if server.number != self.leads
        ]
        self.streaming(primary, [server.name for server in standbys])
        time.sleep(1.0)
        primary.kill()
        self.load.wait(30)
        time.sleep(0.05)
        # The operator has to find the standby with more log, or the other one cannot follow; that time is not counted.
        heir, other = sorted(standbys, key=Server.received, reverse=True)
        self.leads = heir.number
        elsewhere = Session(other.port)
        firsts = {}
        begun = threading.Event()
        probes = [threading.Thread(target=probe, args=(heir.port, level, begun, firsts)) for level in ("local", "on")]
        for thread in probes:
            thread.start()
        time.sleep(0.02)
        begin = time.monotonic()
        begun.set()
        self.tool("pg_ctl", "-D", heir.data, "-w", "promote")
        promoted = time.monotonic()
        elsewhere.do(other.follow(heir))
        elsewhere.do("SELECT pg_reload_conf()")
        elsewhere.link.close()
        for thread in probes:
            thread.join()
        if len(firsts) < 2:
            raise RuntimeError(f"no write after the promotion of {heir.name}: {firsts}; the logs: {self.logs()}")
        self.write_to(heir)
        time.sleep(1.0)
        # Without it pg_rewind reads the timeline of before and rewinds nothing. In PostgreSQL's favour: not counted.
        heir.do("CHECKPOINT")
        again = time.monotonic()
        source = f"host=127.0.0.1 port={heir.port} user={USER} dbname=postgres"
        said = self.tool("pg_rewind", "-D", primary.data, "--source-server", source, "-R", "--progress")
        primary.start()
        self.streaming(heir, [primary.name])
        back = time.monotonic()
        copied = [line for line in said.splitlines() if "need to copy" in line]
        return {
            "killed": primary.number,
            "leads": heir.number,
            "first_write_one_copy_ms": ms(firsts["local"] - begin),
            "first_write_two_copies_ms": ms(firsts["on"] - begin),
            "command_ms": ms(promoted - begin),
            "rejoin_ms": ms(back - again),
            "rewind": copied[0].split("pg_rewind: ")[-1] if copied else "no rewind needed",
        }

    def logs(self):
        found = []
        for server in self.servers:
            with open(server.data + ".log", encoding="utf-8", errors="replace") as file:
                found.append(f"{server.name}: {file.read()[-800:]}")
        return "\n".join(found)

    def down(self):
        if self.load and self.load.poll() is None:
            self.load.kill()
            self.load.wait()
        for server in self.servers:
            if os.path.exists(os.path.join(server.data, "postmaster.pid")):
                self.tool("pg_ctl", "-D", server.data, "-m", "immediate", "stop", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def probe(port, level, begun, firsts):
    """Writes until one write commits; the moment is kept."""
    session = None
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if session is None:
                session = Session(port, PATIENCE)
                session.do(f"SET synchronous_commit = {level}")
            session.do(WRITE.format(1 if level == "on" else 2))
            firsts[level] = time.monotonic()
            return
        except Refused:
            pass
        except OSError:
            session = None
        begun.wait()
        time.sleep(0.001)


def ms(seconds):
    return round(seconds * 1000, 1)


def measure(times, parent, tell):
    """Rows of promotions, or a text that says why there are none."""
    found = binaries()
    if found is None:
        return "not measured: PostgreSQL's server is not installed, or this is not root (tools/setup-ci)"
    cluster = Cluster(found, parent)
    rows = []
    try:
        version = cluster.tool("postgres", "--version").strip()
        cluster.up()
        cluster.write_to(cluster.servers[0])
        for run in range(times):
            rows.append(cluster.once())
            tell(f"  {run + 1}: {json.dumps(rows[-1])}")
        return {"version": version, "settings": SETTINGS.strip().splitlines(), "folder_on_same_disk": same(cluster, parent), "each": rows}
    finally:
        cluster.down()


def same(cluster, parent):
    return os.stat(cluster.folder).st_dev == os.stat(parent).st_dev
