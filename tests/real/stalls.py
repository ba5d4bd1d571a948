"""Disks that hang, disks whose flushes fail, and standbys that stand still.

The disks are those of the power cuts. A hanging disk takes writes and ends no flush, until it is told to go on. While it
hangs, the admin socket and PING answer within a second: that is the time limit of every question here.
"""

import os
import signal

from harness import Broken, Error, Gone, Sandbox, wait_for, want
from kills import Load, failover
from powercuts import Cluster

# Not fdatasync: on FUSE, and there alone, an fsync under way locks its file against the thread that submits a write.
LINES = 'stall_timeout = "1s"\ncommit_timeout = "3s"\nwal_sync = "dsync"\n'


def answers(node):
    """The admin socket and a client's PING, each within a second."""
    for verb in ("ping", "status", "query"):
        answer = node.ask(verb=verb, timeout=1.0)
        want(answer is not None, f"node {node.id} does not answer `{verb}` within a second")
    for last in (False, True):
        with node.client(timeout=1.0) as client:
            try:
                return want(client.do("PING") == b"PONG", f"node {node.id} does not answer PING")
            except Gone as gone:
                # Who steps down closes its clients, once.
                want(not last and "imed" not in str(gone), f"node {node.id} does not answer PING: {gone}")


def stalled(node):
    """The node says that its disk hangs. It answers all the while."""
    answers(node)
    row = node.status()
    return (row["role"], row["state"], row["detail"]) == ("Standby", "Need repair", "IO stalled")


def told(node):
    return lambda: f"node {node.id} says: {node.status()}"


def survived(node):
    return (node.ask(verb="query", timeout=1.5)["result"] or {}).get("failures_survived")


def sender(primary, node):
    rows = [row for row in primary.ask(verb="query")["result"]["senders"] if row["node"] == node.id]
    return rows[0] if rows else {"state": "none"}


def settled(cluster, primary):
    for node in cluster.nodes:
        if node is not primary:
            cluster.wait_standby(node)
    wait_for(lambda: survived(primary) == 1, 20, lambda: f"survives {survived(primary)}: {cluster.roles()}")


def primary_replaced(cluster, load):
    """The primary's disk hangs: it lets go, tells why, is replaced, and follows when the disk answers again."""
    one, two = cluster.node(1), cluster.node(2)
    pid = one.pid()
    load.progress()
    cluster.disks.tell("stall", "1")
    wait_for(lambda: stalled(one), 20, told(one))
    want("IO stalled" in one.run("query", ok=0).stdout, "baton query does not say that the disk hangs")
    with one.client(timeout=1.0) as client:
        refused = client.do("SET", "x", 1)
        want(isinstance(refused, Error) and refused.word in ("READONLY", "CLUSTERDOWN", "MASTERDOWN"), f"a write: {refused}")
    refused = one.run("failover", "--force")
    want(refused.returncode == 4 and "disk does not answer" in refused.stderr, f"a failover to it: {refused}")
    two.run("failover", ok=0)
    load.progress()
    want(stalled(one), told(one)())
    cluster.disks.tell("go", "1")
    settled(cluster, two)
    want(one.pid() == pid, "the node with the hanging disk ended")
    load.verify_through()


def primary_goes_on(cluster, load):
    """Nobody takes over: when the disk answers again the same node leads a new term by itself."""
    two = cluster.wait_primary()
    before = two.ask(verb="query")["result"]["term"]
    cluster.disks.tell("stall", str(two.id))
    wait_for(lambda: stalled(two), 20, told(two))
    want(cluster.primary() is None, f"somebody leads: {cluster.roles()}")
    cluster.disks.tell("go", str(two.id))
    wait_for(lambda: two.role() == ("Primary", "Normal"), 20, told(two))
    after = two.ask(verb="query")["result"]["term"]
    want(after > before, f"term {after} after term {before}")
    settled(cluster, two)
    load.progress()
    load.verify_through()


def standby(cluster, load):
    """A standby's disk hangs: writes go on, the standby says it, and the primary does not count it."""
    primary, three = cluster.wait_primary(), cluster.node(3)
    cluster.disks.tell("stall", "3")
    load.progress()
    wait_for(lambda: stalled(three), 20, told(three))
    wait_for(lambda: survived(primary) == 0, 20, lambda: f"it counts a standby that hangs: {survived(primary)}")
    row = sender(primary, three)
    want(row["state"] == "Stalled", f"the primary shows {row}")
    refused = primary.run("switchover", "--to", 3, "--timeout", "2s")
    want(refused.returncode == 4, f"a switchover to it: {refused}")
    load.progress()
    cluster.disks.tell("go", "3")
    settled(cluster, primary)
    cluster.wait_caught_up(three)
    load.progress()


def hanging(world):
    with Cluster(world, "stalls", 3, LINES, segment="16MiB") as cluster:
        load = Load(cluster, writers=2)
        load.start()
        try:
            for story in (primary_replaced, primary_goes_on, standby):
                try:
                    story(cluster, load)
                except Broken as broken:
                    raise Broken(f"{story.__name__}: {broken}") from broken
            load.end()
            load.troubles()
        finally:
            load.stop.set()
        load.verify(cluster.wait_primary().port, whole=True)
        for node in cluster.nodes:
            said = node.log().count("the disk does not answer")
            want(said > 0, f"the log of node {node.id} does not say that its disk hung")
        return load.counts()


def failing(world):
    """A flush fails: the node latches, says it, ends, and comes back as a standby on a disk that works."""
    with Cluster(world, "flushfails", 3, LINES) as cluster:
        load = Load(cluster, writers=2)
        load.start()
        try:
            one, two, three = cluster.nodes
            load.progress()
            cluster.disks.tell("fail", "1")
            wait_for(lambda: not one.alive(), 20, told(one))
            want("never retried" in one.log() or "cannot be written" in one.log(), f"its log: {one.log()[-600:]}")
            want(one.run("status").returncode == 3, "a node that ended is not shown as down")
            failover(cluster, two)
            load.progress()
            # A standby's disk fails too: with one node left of three nothing commits, and that is said.
            cluster.disks.tell("fail", "3")
            wait_for(lambda: not three.alive(), 20, told(three))
            cluster.cut([one, three], "lose")
            for node in (one, three):
                node.launch()
                cluster.wait_standby(node)
            load.progress()
            load.end()
            load.troubles()
        finally:
            load.stop.set()
        load.verify_everywhere()
        return load.counts()


def frozen_standby(world):
    """A standby stands still: writes go on, it is shown as what it is, and it counts again when it goes on."""
    with Sandbox(world, "frozen", 3) as sandbox:
        primary, three = sandbox.wait_primary(), sandbox.node(3)
        with primary.client() as client:
            os.kill(three.pid(), signal.SIGSTOP)
            try:
                for number in range(50):
                    want(client.do("SET", f"k:{number}", number) == b"OK", "a write with one standby that stands still")
                wait_for(lambda: survived(primary) == 0, 20, lambda: f"it still counts: {survived(primary)}")
                rows = primary.ask(verb="cluster_status")["result"]["nodes"]
                row = [row for row in rows if row["node"] == 3][0]
                want(row["role"] in ("Unknown", "Down"), f"shown as {row}")
                want(client.do("SET", "last", 1) == b"OK", "a write with one standby that stands still")
            finally:
                os.kill(three.pid(), signal.SIGCONT)
        wait_for(lambda: survived(primary) == 1, 20, lambda: f"it does not count again: {sandbox.roles()}")
        sandbox.wait_caught_up(three)


def checks(report, world):
    report.check("a disk that hangs: the node says so, lets go, and goes on by itself", hanging, world)
    report.check("a flush that fails ends the node, and nothing is lost", failing, world)
    report.check("a standby that stands still is shown and does not count", frozen_standby, world)
