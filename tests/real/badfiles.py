"""Folders and files that nobody should start a node on. It heals what it safely can; the rest it refuses, and says what
to do."""

import os
import random
import shutil
import signal
import time

from badinput import Witness, write
from harness import Node, Sandbox, run, wait_for, want
from kills import Load


def scratch(path, offset=0, length=64):
    """Damages bytes of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        length = len(file.read(length))
        file.seek(offset)
        file.write(os.urandom(length))


def refused(node, *texts, patience=30):
    """The node does not start and says why."""
    done = node.run("start", timeout=patience + 30)
    said = done.stdout + done.stderr
    want(done.returncode not in (0, 5), f"it starts, or hangs: exit {done.returncode} {said[:300]}")
    for text in texts:
        want(text in said, f"the message does not say {text!r}: {said[:500]}")
    want(not node.alive(), "the process lives although it was refused")
    return said


def control_files(world):
    with Sandbox(world, "control", 1) as sandbox:
        node = sandbox.node(1)
        witness = Witness(node, "control")
        for broken in ("control.a", "control.b"):
            node.kill()
            scratch(node.path(broken), 40)
            node.start("-M", "primary")
            sandbox.wait_primary()
            witness.still(same_process=False)
            want("control copy" in node.log(), "the healing is not in the log")
        node.kill()
        os.truncate(node.path("control.a"), 100)
        node.start("-M", "primary")
        sandbox.wait_primary()
        witness.still(same_process=False)
        node.kill()
        os.remove(node.path("control.b"))
        node.start("-M", "primary")
        sandbox.wait_primary()
        witness.still(same_process=False)
        node.kill()
        keep = {name: open(node.path(name), "rb").read() for name in ("control.a", "control.b")}
        for name in keep:
            scratch(node.path(name), 40)
        refused(node, "both control copies", "rejoin")
        for name, data in keep.items():
            with open(node.path(name), "wb") as file:
                file.write(data)
        node.start("-M", "primary")
        sandbox.wait_primary()
        witness.still(same_process=False)
        node.kill()
        for name in keep:
            os.remove(node.path(name))
        refused(node, "is the disk mounted", "init")
        return "one damaged, cut or missing copy heals; both are refused"


def superblock(world):
    with Sandbox(world, "superblock", 1) as sandbox:
        node = sandbox.node(1)
        witness = Witness(node, "superblock")
        path = node.path("superblock")
        half = 40 << 10  # where the second slot begins
        keep = open(path, "rb").read()
        for slot in (0, 1):
            node.kill()
            keep = open(path, "rb").read()
            scratch(path, slot * half, 8192)
            node.start("-M", "primary")
            sandbox.wait_primary()
            witness.still(same_process=False)
            node.kill()
            with open(path, "wb") as file:
                file.write(keep)
        scratch(path, 0, 8192)
        scratch(path, half, 8192)
        refused(node, "superblock")
        with open(path, "wb") as file:
            file.write(keep)
        node.start("-M", "primary")
        sandbox.wait_primary()
        witness.still(same_process=False)


def torn_log(world):
    """Garbage behind the end of the log is torn; garbage below what is known to be committed is never skipped."""
    with Sandbox(world, "torn", 1) as sandbox:
        node = sandbox.node(1)
        witness = Witness(node, "torn")
        end = node.status()["flushed_lsn"]
        node.kill()
        segment = node.path("wal", f"{0:016x}.wal")
        with open(segment, "r+b") as file:
            file.seek(end)
            file.write(random.Random(world.seed).randbytes(20_000))
        node.start("-M", "primary")
        sandbox.wait_primary()
        witness.still(same_process=False)
        # Now in the middle of what was acknowledged. Leading would silently lose it.
        with node.client() as client:
            for number in range(50):
                client.do("SET", f"torn:later:{number}", "v" * 3000)
        node.kill()
        scratch(segment, 8192 + 200, 3000)
        done = node.run("start", "-M", "primary", "--timeout", "6s")
        role = node.role()
        if role == ("Primary", "Normal"):
            witness.still(same_process=False)
        want(role != ("Primary", "Normal"), "a node with a damaged log leads")
        said = done.stdout + done.stderr + node.log()[-3000:]
        want("amage" in said or "epair" in said, f"nothing is said about the damage: {said[-600:]}")
        return f"damage is shown as {' '.join(role)}" if role[0] != "Down" else "damage is refused"


def folders(world):
    """Wrong, cloned, empty and busy folders."""
    with Sandbox(world, "folders", 3) as sandbox:
        primary = sandbox.wait_primary()
        witness = Witness(primary, "folders")
        spare = Node(world.baton, os.path.join(sandbox.folder, "spare"), 9, 0)
        os.makedirs(spare.folder)

        # Empty: not a new node, but perhaps an unmounted disk.
        shutil.copy(sandbox.node(3).path("baton.toml"), spare.folder)
        done = run(world.baton, "run", "-D", spare.folder)
        want(done.returncode != 0 and "is the disk mounted" in done.stdout + done.stderr, f"run on an empty folder: {done.stderr[:300]}")
        refused(spare, "is the disk mounted")
        want(sorted(set(os.listdir(spare.folder)) - {"log"}) == ["baton.toml"], f"something was created: {os.listdir(spare.folder)}")

        os.remove(spare.path("baton.toml"))
        done = run(world.baton, "run", "-D", spare.folder)
        want(done.returncode == 2 and "is the disk mounted" in done.stderr, f"run on a bare folder: {done.stderr[:300]}")

        # A second process on the same folder.
        third = sandbox.node(3)
        begin = time.monotonic()
        done = run(world.baton, "run", "-D", third.folder, timeout=60)
        took = time.monotonic() - begin
        want(done.returncode != 0 and "another process" in done.stdout + done.stderr, f"a second process: {done.returncode} {done.stderr[:300]}")
        want(took < 20, f"a second process gives up only after {took:.0f} s")
        want(third.status() is not None, "the first process lost its admin socket to the second")
        want("runs already" in third.run("start").stdout, "`start` does not see the running node")

        # The data of another node under this node's configuration.
        third.kill()
        shutil.rmtree(spare.folder)
        shutil.copytree(third.folder, spare.folder, ignore=lambda *_: ["admin.sock", "baton.pid"])
        ports(spare.path("baton.toml"), third)
        config = spare.path("baton.toml")
        with open(config, encoding="utf-8") as file:
            text = file.read()
        write(config, text.replace("node = 3\nclient_listen", "node = 2\nclient_listen"))
        refused(spare, "belongs to node 3")
        write(config, text.replace('cluster = "sandbox"', 'cluster = "another"'))
        refused(spare, "belongs to cluster")

        # A clone beside its original: same incarnation, two processes.
        write(config, text)
        third.launch()
        sandbox.wait_standby(third)
        spare.launch()
        wait_for(lambda: "in use" in primary.log() or "uplicate" in primary.log() or "copied" in primary.log() or "copy" in primary.log(), 15,
                 "the primary's log says nothing about the clone")
        want(spare.role() != ("Standby", "Normal"), "the clone streams as if it were the original")
        sandbox.wait_standby(third)
        spare.kill()

        # Initialising over a node.
        done = primary.run("init", "--cluster", "x", "--node", 1)
        want(done.returncode != 0, "init runs over an existing node")
        witness.still()
        return f"a second process gave up after {took:.1f} s"


def started_at_once(world):
    """kill -9 under load and a start in the same breath, while writes of the dead process may still be on their way."""
    with Sandbox(world, "atonce", 1) as sandbox:
        node = sandbox.node(1)
        load = Load(sandbox, writers=3)
        load.start()
        rounds = 40 if world.long else 6
        try:
            for _ in range(rounds):
                load.progress()
                os.kill(node.pid(), signal.SIGKILL)
                # The command line looks for the old process, or two processes meet at the lock: both must end well.
                done = run(world.baton, "start", "-M", "primary", "-D", node.folder)
                if "runs already" in done.stdout + done.stderr:
                    wait_for(lambda: not node.alive(), 20, "the killed process does not die")
                    node.start("-M", "primary")
                else:
                    want(done.returncode == 0, f"a start right after kill -9: {done.returncode} {done.stderr[:300]}")
                load.verify_through()
            load.end()
        finally:
            load.stop.set()
        load.verify(sandbox.wait_primary().port, whole=True)
        return f"{rounds} times; {load.counts()}"


def ports(path, node):
    """Other ports for a copy, the members stay as they are."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    for at, line in enumerate(lines):
        for key, port in (("client_listen", node.port), ("peer_listen", node.peer_port), ("http_listen", node.http_port)):
            if line.startswith(key):
                lines[at] = f'{key} = "127.0.0.1:{port + 40}"'
    write(path, "\n".join(lines))


# ---- configuration ----

GOOD = 'cluster = "a"\nnode = 1\n'
MISTAKES = [
    (GOOD + 'comit_timeout = "1s"\n', 3, "commit_timeout"),
    (GOOD + 'commit_timeout = 10\n', 3, "unit"),
    (GOOD + 'memory = "12"\n', 3, "unit"),
    (GOOD + 'commit = "maybe"\n', 3, "remote_apply"),
    (GOOD + 'client_listen = "localhost"\n', 3, "127.0.0.1:7379"),
    (GOOD + 'client_listen = "0.0.0.0:7379"\npeer_listen = "0.0.0.0:8379"\n', None, "secret"),
    (GOOD + 'sync = "ANY 2 (1, 7)"\n', 3, "7"),
    (GOOD + 'degrade = "after 10s"\n', 3, "store"),
    (GOOD + "node = 2\n", 3, ""),
    (GOOD + "[[member\n", 3, ""),
    ("node = 0\ncluster = \"A B\"\n", 1, ""),
    ("\0\1\2", None, ""),
    (GOOD + '[[member]]\nnode = 1\npeer = "127.0.0.1:1"\n[[member]]\nnode = 1\npeer = "127.0.0.1:2"\n', None, "1"),
]


def configuration(world):
    folder = os.path.join(world.folder, "config")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "baton.toml")
    write(path, GOOD)
    run(world.baton, "check-config", path, ok=0)
    for text, line, hint in MISTAKES:
        write(path, text)
        done = run(world.baton, "check-config", path)
        said = done.stdout + done.stderr
        want(done.returncode == 2, f"{text!r}: exit {done.returncode}, {said[:200]}")
        if line is not None:
            want(f"line {line}" in said or f":{line}" in said, f"{text!r}: line {line} is not named: {said[:300]}")
        want(hint in said, f"{text!r}: the hint does not mention {hint!r}: {said[:300]}")
        started = run(world.baton, "run", "-D", folder)
        want(started.returncode != 0, f"{text!r}: a node starts with it")
    done = run(world.baton, "check-config", os.path.join(folder, "nothing.toml"))
    want(done.returncode != 0, "a file that is not there passes")
    keys = run(world.baton, "check-config", "--keys", ok=0).stdout
    want("commit_timeout" in keys, "--keys lists nothing")
    shutil.rmtree(folder)
    return f"{len(MISTAKES)} mistakes, each with its line and a hint"


def checks(report, world):
    report.check("damaged control files", control_files, world)
    report.check("damaged superblock", superblock, world)
    report.check("torn and damaged log", torn_log, world)
    report.check("wrong, cloned, empty and busy folders", folders, world)
    report.check("a start in the same breath as kill -9", started_at_once, world)
    report.check("mistakes in the configuration", configuration, world)
