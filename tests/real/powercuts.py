"""Power cuts of real nodes: their disks forget, tear or keep what was not flushed.

The disks are a FUSE file system of our own (`cutdisk`, beside this file). A cut stops the disk first and the process a
moment later, so that nothing of the process can land afterwards. The load and its judge are those of the kill cycles.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time

from harness import ROOT, Broken, Client, Gone, Node, Sandbox, Skip, free, wait_for, want
from kills import Cycles, Load, failover

CUTDISK = os.environ.get("BATON_CUTDISK", os.path.join(ROOT, "target/debug/examples/cutdisk"))


class Disks:
    """The mounted disks: each folder at the top is one."""

    def __init__(self, folder):
        if not os.path.exists("/dev/fuse"):
            raise Skip("there is no /dev/fuse")
        want(os.path.exists(CUTDISK), f"there is no {CUTDISK}: run `cargo build --example cutdisk` first")
        unmount(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        self.folder = folder
        self.process = subprocess.Popen(
            [CUTDISK, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if self.process.stdout.readline().strip() != "ready":
            raise Skip(f"no FUSE file system can be mounted: {self.process.stderr.read().strip()}")
        self.cuts = self.lost = self.kept = self.torn = self.undone = 0

    def tell(self, *words):
        self.process.stdin.write(" ".join(str(word) for word in words) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        want(answer and answer[0] != "error", f"the disk answers {answer} to {words}")
        return answer

    def cut(self, names, fate, seed):
        _, lost, kept, torn, undone = self.tell("cut", ",".join(names), fate, seed)
        self.cuts += 1
        self.lost += int(lost)
        self.kept += int(kept)
        self.torn += int(torn)
        self.undone += int(undone)

    def close(self):
        unmount(self.folder)
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def text(self):
        return (f"{self.cuts} cuts: {self.lost} unflushed blocks lost, {self.torn} torn, {self.kept} kept, "
                f"{self.undone} changes of folders undone")


def unmount(folder):
    """Also when the process behind it is gone already, and when a dying process still holds a file."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        mounted = any(line.split()[1] == folder for line in file)
    for tool in (["umount", "-l"], ["fusermount3", "-u", "-z"]):
        if mounted and shutil.which(tool[0]):
            mounted = subprocess.run([*tool, folder], capture_output=True, check=False).returncode != 0


class CutNode(Node):
    """A node whose death is a power cut."""

    def __init__(self, cluster, folder, node, port):
        super().__init__(cluster.world.baton, folder, node, port)
        self.cluster = cluster

    def kill(self):
        self.cluster.cut([self])


class Cluster(Sandbox):
    """Nodes with small log files on disks that can lose their power."""

    def __init__(self, world, name, nodes, lines="", dice=None, segment="1MiB"):
        self.world, self.name = world, name
        self.folder = os.path.join(world.folder, name)
        self.disks = Disks(self.folder)
        self.dice = dice or random.Random(world.seed)
        self.lines, self.segment = lines, segment
        base = world.next_base()
        self.nodes = [CutNode(self, os.path.join(self.folder, str(n)), n, base + n) for n in range(1, nodes + 1)]

    def up(self):
        members = "".join(
            f'[[member]]\nnode = {node.id}\nhost = "node{node.id}"\nclient = "127.0.0.1:{node.port}"\n'
            f'peer = "127.0.0.1:{node.peer_port}"\n'
            for node in self.nodes
        )
        cluster_id = []
        for node in self.nodes:
            os.makedirs(node.folder)
            with open(node.path("baton.toml"), "w", encoding="utf-8") as file:
                file.write(
                    f'cluster = "powercuts"\nnode = {node.id}\nclient_listen = "127.0.0.1:{node.port}"\n'
                    f'peer_listen = "127.0.0.1:{node.peer_port}"\npeer_secret = "of the power cuts"\ncores = 1\n'
                    f'memory = "64MiB"\nsegment_bytes = "{self.segment}"\nlog_retention = "1GiB"\nshards = 8\n'
                    f"{self.lines}{members}"
                )
                file.flush()
                os.fsync(file.fileno())
            # Our entry is ours to flush. What `init` reports as done has to be durable without any help.
            place = os.open(node.folder, os.O_RDONLY)
            os.fsync(place)
            os.close(place)
            said = node.run("init", "--json", *cluster_id, ok=0).stdout
            cluster_id = cluster_id or ["--cluster-id", word_after(said, "cluster_id")]
        self.cut(self.nodes, "lose")
        for node in self.nodes:
            node.launch(*(["-M", "primary"] if node is self.nodes[0] else []))
        self.wait_primary()
        for node in self.nodes[1:]:
            self.wait_standby(node)
        return self

    def __enter__(self):
        try:
            return self.up()
        except BaseException as error:
            self.__exit__(type(error))
            raise

    def __exit__(self, kind, *_):
        complaint = self.panics()
        if kind is not None or complaint:
            keep = os.path.join(self.world.folder, f"{self.name}-failed")
            shutil.rmtree(keep, ignore_errors=True)
            # The disks are gone with their process; one that hangs cannot be copied.
            self.disks.tell("go", ",".join(str(node.id) for node in self.nodes))
            shutil.copytree(self.folder, keep, ignore=lambda *_: ["admin.sock"])
            print(f"     kept in {keep}")
        self.down()
        self.disks.close()
        if kind is None and complaint:
            raise Broken(complaint)
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def cut(self, nodes, fate=None, stall=0.02):
        """The power of these nodes goes, at the same moment. Before it, flushes hang for up to so many seconds, as on a
        disk that is going: much is under way then."""
        pids = [pid for pid in (node.pid() for node in nodes) if pid]
        names = [str(node.id) for node in nodes]
        fate = fate or self.dice.choice(["lose", "tear", "tear", "tear", "tear", "keep"])
        self.disks.tell("stall", ",".join(names))
        time.sleep(self.dice.random() * stall)
        self.disks.cut(names, fate, self.dice.randrange(1 << 32))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            wait_for(lambda pid=pid: dead(pid), 20, f"process {pid} does not die")
        # A process's ring outlives it by a moment and holds its listeners. The lock of the folder, which makes a start wait
        # for that, went with the power; a machine that lost its power has no such ring.
        ports = [port for node in nodes for port in (node.port, node.peer_port)]
        wait_for(lambda: all(free(port) for port in ports), 20, f"a dead process keeps one of the ports {ports}")
        self.disks.tell("on", ",".join(names))


def dead(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def superblocks(node):
    """How often the node's superblock was written: the sequence number in the newer of the two slots."""
    try:
        with open(node.path("superblock"), "rb") as file:
            slots = file.read()
    except OSError:
        return 0
    return max(int.from_bytes(slots[at + 32 : at + 40], "little") for at in (0, 40 << 10))


def word_after(text, key):
    """The value of a key in JSON, wherever it stands."""
    at = text.index(f'"{key}"') + len(key) + 2
    return text[at:].split('"')[1]


class Cuts(Cycles):
    """The faults of the kill cycles, with power cuts for kills, and one more: the room goes dark."""

    def all_at_once(self):
        nodes = list(self.sandbox.nodes)
        self.sandbox.cut(nodes)
        self.dice.shuffle(nodes)
        for node in nodes:
            node.launch()
        failover(self.sandbox, nodes[0])
        self.load.progress()

    def await_checkpoint(self):
        """Lets the first shards finish a checkpoint: the cut falls between the shards. A slow machine goes without."""
        primary, end = self.sandbox.wait_primary(), time.monotonic() + 5
        before = superblocks(primary)
        while superblocks(primary) == before and time.monotonic() < end:
            time.sleep(0.01)

    def one(self, number):
        kinds = [self.all_at_once] * 4 + [self.kill_primary] * 3 + [self.kill_standby] * 2 + [self.kill_primary_keep_it]
        kind = self.dice.choice(kinds)
        name = kind.__name__.replace("kill", "cut")
        self.done[name] = self.done.get(name, 0) + 1
        try:
            self.load.progress()
            if number % 3 == 0:
                self.await_checkpoint()
            kind()
            self.settle()
            self.load.verify_through()
            want(not self.sandbox.panics(), self.sandbox.panics())
        except Exception as error:
            raise Broken(f"cycle {number} ({name}): {type(error).__name__} {error} [{self.load.counts()}]") from error


class Ballast(threading.Thread):
    """Large values that nobody judges: they roll log files and force checkpoints."""

    def __init__(self, cluster, stop):
        super().__init__(daemon=True)
        self.cluster, self.stop = cluster, stop

    def run(self):
        turn = 0
        while not self.stop.is_set():
            for node in self.cluster.nodes:
                try:
                    with Client(node.port, timeout=5) as client:
                        while not self.stop.is_set():
                            turn += 1
                            value = b"%07d" % turn * 14_000
                            commands = [("SET", f"ballast:{(turn * 4 + n) % 1000}", value) for n in range(4)]
                            replies, whole = client.all(commands)
                            if not whole or any(reply != b"OK" for reply in replies):
                                break
                            # Not more than the kept log holds while a node is away.
                            time.sleep(0.02)
                except (OSError, Gone):
                    pass
            time.sleep(0.02)


def cycles(world, nodes, count, wal_sync):
    dice = random.Random(world.seed * 10 + nodes)
    with Cluster(world, f"cuts{nodes}", nodes, f'wal_sync = "{wal_sync}"\n', dice) as cluster:
        load = Load(cluster, writers=3)
        load.start()
        Ballast(cluster, load.stop).start()
        faults = Cuts(cluster, load, dice)
        try:
            for number in range(1, count + 1):
                faults.one(number)
            load.end()
            load.troubles()
        finally:
            load.stop.set()
        load.verify_everywhere()
        disks = cluster.disks
        want(disks.lost + disks.torn > 0, f"nothing was unflushed in any cut: the check shows nothing ({disks.text()})")
        kinds = ", ".join(f"{name} {times}" for name, times in sorted(faults.done.items()))
        written = sum(superblocks(node) for node in cluster.nodes)
        return (f"seed {world.seed}, {wal_sync}, {disks.text()} ({kinds}), {written} superblocks; "
                f"{load.counts()}")


def disk_that_lies(world):
    """The test of the test: disks that answer flushes and do nothing lose what was acknowledged, and it is seen."""
    with Cluster(world, "liars", 2) as cluster:
        load = Load(cluster, writers=2)
        load.start()
        load.progress()
        cluster.disks.tell("lie", "1,2")
        load.progress()
        load.end()
        cluster.cut(cluster.nodes, "lose")
        cluster.disks.tell("honest", "1,2")
        for node in cluster.nodes:
            node.launch(*(["-M", "primary"] if node is cluster.nodes[0] else []))
        primary = cluster.wait_primary()
        try:
            load.verify(primary.port, whole=True)
        except Broken as broken:
            want("LOST" in str(broken), f"not a loss but: {broken}")
            return f"seen: {broken}"
        raise Broken("disks that lie lose nothing: the check cannot fail")


def commit_off(world):
    """The other test of the test: replies that wait for no disk are lost by the same cut, and at the default level there
    are none."""
    shown = []
    for level, lossy in (("off", True), ("on", False)):
        with Cluster(world, f"level-{level}", 1, f'commit = "{level}"\n') as cluster:
            node = cluster.node(1)
            answered = []
            with node.client(timeout=0.5) as client:
                # A read waits until what it shows is committed, whatever the level.
                want(client.do("SET", "warm", "1") == b"OK" and client.do("GET", "warm") == b"1", "a first write")
                cluster.disks.tell("stall", "1")
                for number in range(50):
                    try:
                        if client.do("SET", f"off:{number}", "v") == b"OK":
                            answered.append(number)
                    except Gone:
                        break
                cluster.cut([node], "lose")
            node.start("-M", "primary")
            cluster.wait_primary()
            with node.client() as client:
                found = client.do("MGET", "warm", *[f"off:{number}" for number in range(50)])
            lost = [number for number in answered if found[1 + number] is None]
            want(found[0] is not None, "what was answered long before is lost")
            want(bool(lost) == lossy, f"commit = {level}: {len(answered)} answered by a hanging disk, {len(lost)} lost")
            shown.append(f"{level}: {len(answered)} answered, {len(lost)} lost")
    return ", ".join(shown)


def checks(report, world):
    report.check("a disk that lies is found out", disk_that_lies, world)
    report.check("replies that wait for nothing are found out", commit_off, world)
    report.check("power cuts, one and one, flushes", cycles, world, 2, 150 if world.long else 6, "fdatasync")
    report.check("power cuts, three nodes, durable writes", cycles, world, 3, 150 if world.long else 6, "dsync")
