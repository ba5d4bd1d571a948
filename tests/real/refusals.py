"""What operators and clients do wrongly. Each is refused in one sentence with its exit code and changes nothing: term,
policy and roles are compared before and after."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time

from badfiles import ports
from badinput import write
from clients import library
from harness import Broken, Error, Node, Sandbox, encode, run, tool, wait_for, want

MIB = 1 << 20
# How far behind a switchover's target may be.
LAG_MAX = 32 * MIB


def show(done):
    return json.loads(done.stdout.strip().splitlines()[-1])


class Still:
    """What no refused command may change."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.before = self.look()

    def look(self):
        seen = {}
        for node in self.sandbox.nodes:
            # A node that stands still, or that is gone, says nothing.
            status = node.ask(verb="status", timeout=1)
            query = status and node.ask(verb="query", timeout=1)
            policy = query and node.ask(verb="policy_show", timeout=1)
            if policy:
                rule = (policy["result"]["generation"], policy["result"]["rule"])
                seen[node.id] = (status["result"]["role"], query["result"]["term"], rule)
        return seen

    def stands(self, what):
        after = self.look()
        both = [node for node in self.before if node in after]
        want(both, f"{what}: no node answers")
        changed = {node: (self.before[node], after[node]) for node in both if self.before[node] != after[node]}
        want(not changed, f"{what} changed something: {changed}")

    def refused(self, node, words, sentence, code=4):
        """Asks for it, on a terminal and with --json. Both are refused, and nothing has changed."""
        what = f"node {node.id}: baton {' '.join(map(str, words))}"
        done = node.run(*words)
        said = done.stderr.strip().splitlines()
        want(done.returncode == code, f"{what}: exit {done.returncode}, not {code}: {said[:3]} {done.stdout[:200]}")
        complaint = [line for line in said if line.startswith("baton: ")]
        want(len(complaint) == 1 and len(said) <= 2, f"{what} does not say one sentence: {said}")
        want(sentence in complaint[0], f"{what} does not say {sentence!r}: {complaint[0]}")
        error = show(node.run(*words, "--json"))
        want(not error["ok"] and sentence in error["error"]["message"], f"{what} --json: {error}")
        self.stands(what)


def freeze(node, word=signal.SIGSTOP):
    os.kill(node.pid(), word)


class Slowed:
    """A process that moves for 3 ms and stands still for 60, again and again."""

    def __init__(self, node):
        self.pid, self.stop = node.pid(), threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def beat(self):
        while not self.stop.is_set():
            os.kill(self.pid, signal.SIGSTOP)
            self.stop.wait(0.06)
            os.kill(self.pid, signal.SIGCONT)
            time.sleep(0.003)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def configure(sandbox, change):
    """Other configurations: `change(node id, text)` gives the new text."""
    run(sandbox.world.baton, "cluster", "stop", "--dir", sandbox.folder, ok=0)
    for node in sandbox.nodes:
        with open(node.path("baton.toml"), encoding="utf-8") as file:
            text = file.read()
        write(node.path("baton.toml"), change(node.id, text))
    run(sandbox.world.baton, "cluster", "start", "--dir", sandbox.folder, ok=0)


def tagged(text, number, tag):
    return text.replace(f"[[member]]\nnode = {number}\n", f"[[member]]\nnode = {number}\n{tag}\n")


# ---- switchover and failover ----


def targets(world):
    """A target that is unknown, the primary itself, cascaded, gone, standing still, not following, or far behind."""
    with Sandbox(world, "targets", 4, "--upstream", "4:2") as sandbox:
        one, two, three, four = sandbox.nodes
        sandbox.wait_primary()
        wait_for(lambda: four.role() == ("Cascade Standby", "Normal"), 20, sandbox.roles)
        still = Still(sandbox)
        for node in (one, two, four):
            still.refused(node, ("switchover", "--to", 9), "node 9 cannot take over: it is no member of this cluster")
            still.refused(node, ("switchover", "--to", 1), "node 1 cannot take over: it is the primary already")
            still.refused(node, ("switchover", "--to", 4), "node 4 cannot take over: it streams from another standby")
        still.refused(four, ("switchover",), "node 4 cannot take over: it streams from another standby")
        freeze(three)
        try:
            for node in (one, two):
                still.refused(node, ("switchover", "--to", 3), "node 3 cannot take over: it does not answer")
        finally:
            freeze(three, signal.SIGCONT)
        sandbox.wait_standby(three)
        three.run("start", "-M", "pending", ok=0)
        still = Still(sandbox)
        for node in (one, two):
            still.refused(node, ("switchover", "--to", 3), "node 3 cannot take over: it does not follow this primary yet")
        still.refused(three, ("switchover",), "node 3 cannot take over: it does not follow this primary yet")
        three.run("start", "-M", "standby", ok=0)
        sandbox.wait_standby(three)
        three.kill()
        still = Still(sandbox)
        for node in (one, two):
            still.refused(node, ("switchover", "--to", 3), "node 3 cannot take over: it does not answer")
        # It comes back far behind, and slowly.
        with one.client() as client:
            for first in range(0, 2 * LAG_MAX // MIB, 8):
                client.all([("SET", f"big:{first + n}", os.urandom(MIB)) for n in range(8)])
        seen = far_behind(one, three)
        want(seen, "a target that is far behind was never refused for it")
        sandbox.wait_caught_up(three)
        three.run("switchover", ok=0)
        return seen


def far_behind(primary, laggard):
    laggard.launch()
    wait_for(lambda: laggard.status(), 20, "it does not start")
    with Slowed(laggard):
        for _ in range(40):
            done = primary.run("switchover", "--to", laggard.id, "--dry-run")
            if done.returncode == 4 and "bytes behind: let it catch up first" in done.stderr:
                return done.stderr.splitlines()[0]
            if done.returncode == 0:
                return None
    return None


def at_once(world):
    """Two commands in the same moment: each is done or refused, one after the other; the same one twice is one."""
    with Sandbox(world, "atonce2", 3) as sandbox:
        one, two, three = sandbox.nodes
        sandbox.wait_primary()
        notes = []

        def together(*asked):
            pool = [
                subprocess.Popen(
                    [world.baton, *map(str, words), "-D", node.folder],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for node, words in asked
            ]
            ends = [(other.communicate(timeout=90), other.returncode) for other in pool]
            codes = [code for _, code in ends]
            want(all(code in (0, 4, 5) for code in codes), f"{asked}: {ends}")
            notes.append("/".join(map(str, codes)))
            return ends

        def settled():
            leads = sandbox.wait_primary()
            for node in sandbox.nodes:
                if node is not leads:
                    sandbox.wait_standby(node)
            with leads.client() as client:
                want(client.do("SET", "x", 1) == b"OK", "writes do not go on")
            return leads

        together((one, ("switchover", "--to", 2)), (one, ("switchover", "--to", 3)))
        leads = settled()
        others = [node for node in sandbox.nodes if node is not leads]
        together(*[(node, ("switchover", "--to", node.id)) for node in others])
        leads = settled()
        together((leads, ("policy", "set", "ANY 2 (1, 2, 3)")), (leads, ("policy", "set", "ANY 2 (1, 2, 3)")))
        leads = settled()
        leads.run("policy", "set", "ANY 1 (1, 2, 3)", "--force", ok=0)
        # The same command under one op id, while it is under way.
        other = next(node for node in sandbox.nodes if node is not leads)
        words = ("switchover", "--to", other.id, "--op", "twin", "--json")
        ends = together((other, words), (other, words))
        want(ends[0] == ends[1] and ends[0][1] == 0, f"one op id, two outcomes: {ends}")
        leads = settled()
        want(leads is other, f"node {leads.id} leads, not {other.id}")
        still = Still(sandbox)
        done = other.run("switchover", "--to", one.id if other is not one else two.id, "--op", "twin")
        want(done.returncode == 2 and "op" in done.stderr, f"another command under a used op id: {done}")
        still.stands("another command under a used op id")
        # The primary dies, and both others are told to take over.
        leads.kill()
        left = [node for node in sandbox.nodes if node is not leads]
        ends = together(*[(node, ("failover",)) for node in left])
        want(0 in [code for _, code in ends], f"nobody takes over: {ends}")
        wait_for(sandbox.primary, 20, sandbox.roles)
        leads.launch()
        settled()
        return f"exit codes {', '.join(notes)}"


def stale_numbers(world):
    """What was decided on an older view of the cluster is refused on every node."""
    with Sandbox(world, "stale", 3) as sandbox:
        one, two, three = sandbox.nodes
        old = sandbox.wait_primary().ask(verb="query")["result"]["term"]
        two.run("switchover", "--expect-term", old, ok=0)
        generation = one.ask(verb="policy_show")["result"]["generation"]
        two.run("policy", "set", "ANY 2 (1, 2, 3)", "--expect-generation", generation, ok=0)
        for node in (one, three):
            sandbox.wait_standby(node)
            sandbox.wait_caught_up(node)
        still = Still(sandbox)
        for node in sandbox.nodes:
            newer = f"the newest term here is {old + 1}, not {old}"
            still.refused(node, ("switchover", "--to", 3, "--expect-term", old), newer)
            still.refused(node, ("failover", "--expect-term", old), newer)
            still.refused(node, ("failover", "--force", "--expect-term", old), newer)
            still.refused(
                node,
                ("policy", "set", "FIRST 2 (1, 2, 3)", "--expect-generation", generation),
                f"the policy generation is {generation + 1}, not {generation}",
            )


def wrong_places(world):
    """Role and policy commands where they cannot be done: beside a primary that lives, without one, on a node that does
    not run, without a quorum."""
    with Sandbox(world, "places", 3) as sandbox:
        one, two, three = sandbox.nodes
        sandbox.wait_primary()
        still = Still(sandbox)
        alive = "node 1 is alive as primary"
        for words in (("failover",), ("promote",), ("start", "-M", "primary"), ("failover", "--alone")):
            still.refused(two, words, alive)
        still.refused(one, ("start", "-M", "standby"), alive)
        still.refused(one, ("start", "-M", "pending"), alive)
        still.refused(two, ("start", "-M", "cascade_standby"), "has no upstream", 2)
        already = show(one.run("failover", "--dry-run", "--json", ok=0))
        want(already["dry_run"] and "at_stake" not in already, f"a dry run on the primary: {already}")
        one.run("failover", ok=0)
        still.stands("failover on the primary")

        # No primary: a standby passes nothing on, and says so at once.
        one.kill()
        wait_for(lambda: two.role()[1] == "Need repair", 20, sandbox.roles)
        still = Still(sandbox)
        for node in (two, three):
            away = "the primary, node 1, cannot be reached from here"
            still.refused(node, ("switchover",), away)
            still.refused(node, ("switchover", "--to", 3), away)
            still.refused(node, ("policy", "set", "ANY 2 (1, 2, 3)"), away)
            still.refused(node, ("cluster", "finalize-upgrade"), away)
        still.refused(two, ("failover", "--alone"), "2 voters answer, which is enough: run it without --alone")
        asked = show(two.run("cluster", "history", "--json", ok=0))["rows"][-1]
        want(asked["what"] == "asked" and "not done" in asked["to"], f"the history keeps what was refused: {asked}")
        for words in (("failover",), ("switchover",), ("query",), ("policy", "show"), ("reload",)):
            done = one.run(*words)
            want(done.returncode == 3 and "no node runs in" in done.stderr, f"{words} on a node that is down: {done}")

        # A quorum that is lost: neither a standby nor the rest may lead.
        three.kill()
        still = Still(sandbox)
        still.refused(two, ("failover",), "needs 2 counting voters and 1 answer")
        still.refused(two, ("failover", "--force"), "needs 2 counting voters and 1 answer")
        still.refused(two, ("failover", "--alone"), "acknowledged writes could be lost")
        still.refused(two, ("failover", "--alone"), "--accept-loss accepts that")
        one.launch()
        wait_for(lambda: one.role() == ("Primary", "Normal"), 30, sandbox.roles)
        sandbox.wait_standby(two)
        two.kill()
        wait_for(lambda: "no quorum" in (one.status() or {}).get("detail", ""), 10, lambda: f"{one.status()}")
        verdict = show(one.run("cluster", "status", "--json", ok=0))
        want(verdict["cluster_state"] == "Unavailable", f"a primary that cannot commit: {verdict['cluster_state']}")
        still = Still(sandbox)
        still.refused(one, ("switchover",), "no standby can take over: node 2: it does not answer")
        still.refused(one, ("policy", "set", "ANY 2 (1, 2, 3)"), "fewer of these voters answer than a commit would need")
        still.refused(one, ("policy", "set", "ANY 0 (1)"), "without a control store that needs force")


def impossible_policies(world):
    """Policies that no set of voters can satisfy, or that only a loss would."""
    with Sandbox(world, "impossible", 4, "--upstream", "4:2") as sandbox:
        one, two, three, _ = sandbox.nodes
        sandbox.wait_primary()
        still = Still(sandbox)
        rules = [
            ("ANY 3 (1, 2, 3)", "k = 3 needs at least 4 voters, the list has 3"),
            ("ANY 2 (2, 3)", "k = 2 needs at least 3 voters"),
            ("ANY 1 (2, 3)", "the primary is no voter in it"),
            ("ANY 1 (1, 2, 9)", "voter 9 is not a member"),
            ("ANY 1 (1, 4)", "4"),
            ("ANY 1 (1, 1)", "named twice"),
            ("ANY 1 (1, 2", "is not a synchronous rule"),
            ("", "is not a synchronous rule"),
            ("ANY 99999999999999999999 (1, 2)", "is not a synchronous rule"),
            ("ANY 0 (1, 2, 3)", "needs force"),
            ("ANY 1 (1, 2, 3)", "it is what is in force already"),
        ]
        for node in (one, two):
            for rule, sentence in rules:
                still.refused(node, ("policy", "set", rule), sentence)
        freeze(three)
        try:
            for node in (one, two):
                still.refused(node, ("policy", "set", "ANY 2 (1, 2, 3)"), "writes would stop at once")
        finally:
            freeze(three, signal.SIGCONT)
        sandbox.wait_standby(three)
        with one.client() as client:
            want(client.do("SET", "x", 1) == b"OK", "writes do not go on")
        return f"{len(rules)} rules on two nodes"


def late(world):
    """A switchover that is not ready in time is undone, with one exit code wherever it was asked; and a change of policy
    that waits for a slow voter is shown while it does."""
    with Sandbox(world, "late", 3) as sandbox:
        one, two, three = sandbox.nodes
        sandbox.wait_primary()
        seen = {}
        for attempt in range(12):
            asked = (one, two)[len(seen)]
            three.kill()
            with one.client() as client:
                client.all([("SET", f"a:{attempt}:{n}", os.urandom(MIB)) for n in range(24)])
            three.launch()
            wait_for(three.status, 20, "it does not start")
            with Slowed(three):
                end = time.monotonic() + 10
                while time.monotonic() < end:
                    done = asked.run("switchover", "--to", 3, "--timeout", "500ms", "--json")
                    if done.returncode != 4:
                        break
            sandbox.wait_primary()
            if done.returncode == 5:
                error = show(done)["error"]
                want(error["code"] == "timeout" and "aborted: it was not ready" in error["message"], f"{error}")
                seen[asked.id] = error["message"]
                if len(seen) == 2:
                    break
            else:
                want(done.returncode in (0, 4), f"{done}")
                if not one.run("switchover", "--to", 1).returncode == 0:
                    wait_for(lambda: one.role() == ("Primary", "Normal"), 20, sandbox.roles)
            sandbox.wait_caught_up(three)
        want(len(seen) == 2, f"no switchover was late at both nodes: {seen}, {sandbox.roles()}")
        with one.client() as client:
            want(client.do("SET", "x", 1) == b"OK", "writes do not go on")
        sandbox.wait_caught_up(three)
        # ANY 2 of three waits for the slow one too.
        begin = one.ask(verb="policy_show")["result"]["generation"]
        shown = []
        with Slowed(three):
            change = subprocess.Popen(
                [world.baton, "policy", "set", "ANY 2 (1, 2, 3)", "-D", two.folder],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            while change.poll() is None:
                pending = one.ask(verb="policy_show")["result"].get("pending", [])
                if pending and not shown:
                    shown = pending
                    text = one.run("cluster", "status", "--detail", ok=0).stdout
                    told = f"policy_change   : to ANY 2 (1, 2, 3), generation {begin + 1}"
                    want(told in text or one.ask(verb="policy_show")["result"]["generation"] > begin, text)
        want(change.returncode == 0, f"the change: {change.returncode} {change.stderr.read()}")
        want(shown in ([], [{"generation": begin + 1, "rule": "ANY 2 (1, 2, 3)"}]), f"shown as {shown}")
        after = one.ask(verb="policy_show")["result"]
        want(after["generation"] == begin + 1 and "pending" not in after, f"afterwards: {after}")
        rows = show(one.run("cluster", "history", "--json", ok=0))["rows"]
        stale = [row for row in rows[-3:] if row["what"] == "role" and "switchover" in row["evidence"]]
        want(not stale, f"a switchover that was given up is named as a reason: {stale}")
        return f"exit code 5 at nodes 1 and 2; the change was {'seen' if shown else 'too quick to be seen'} under way"


# ---- folders and configurations ----


def rings(world):
    """A standby that shall stream from itself, and two that shall stream from each other."""
    with Sandbox(world, "rings", 4) as sandbox:
        _, two, three, four = sandbox.nodes
        sandbox.wait_primary()
        still = Still(sandbox)
        three.kill()
        with open(three.path("baton.toml"), encoding="utf-8") as file:
            good = file.read()
        for text, sentence in (
            (tagged(good, 3, "upstream = 3"), "upstreams must end at a direct standby"),
            (tagged(tagged(good, 3, "upstream = 4"), 4, "upstream = 3"), "upstreams must end at a direct standby"),
            (tagged(good, 3, "upstream = 9"), "upstream 9 is not a member"),
        ):
            write(three.path("baton.toml"), text)
            for words in (("check-config",), ("start",)):
                done = three.run(*words)
                want(done.returncode == 2, f"{words}: exit {done.returncode}: {done.stderr[:300]}")
                want(sentence in done.stderr, f"{words} does not say {sentence!r}: {done.stderr[:300]}")
            want(not three.alive(), "it runs with it")
        still.stands("a ring in a configuration")
        write(three.path("baton.toml"), good)
        three.start()
        # No file has a circle in it, but the two together make one.
        pairs = {3: (3, "upstream = 4"), 4: (4, "upstream = 3")}
        configure(sandbox, lambda node, text: tagged(text, *pairs[node]) if node in pairs else text)
        primary = sandbox.wait_primary()
        for round in range(3):
            with primary.client() as client:
                want(client.do("SET", "round", round) == b"OK", "a write beside a ring")
                lsn = client.do("BATON.LSN")
            for node in (three, four):
                with node.client() as client:
                    found = client.do("BATON.WAITLSN", lsn, 15_000)
                want(found == b"OK", f"node {node.id} is cut off by the ring: {found}, {node.status()}")
        froms = {node.id: node.status()["upstream"] for node in (three, four)}
        want(froms != {3: 4, 4: 3}, f"they stream from each other: {froms}")
        want(two.role() == ("Standby", "Normal"), sandbox.roles())
        return f"3 streams from {froms[3]}, 4 from {froms[4]}"


def clones(world):
    """A copy of node 2's folder as a second process beside it, and in node 3's place."""
    with Sandbox(world, "clones", 3) as sandbox:
        one, two, three = sandbox.nodes
        sandbox.wait_primary()
        with one.client() as client:
            client.all([("SET", f"k:{n}", n) for n in range(200)])
        sandbox.wait_caught_up(two)
        copy = Node(world.baton, os.path.join(sandbox.folder, "copy"), 2, 0)
        leave = shutil.ignore_patterns("admin.sock", "baton.pid", "log")
        freeze(two)
        try:
            shutil.copytree(two.folder, copy.folder, ignore=leave)
        finally:
            freeze(two, signal.SIGCONT)
        sandbox.wait_standby(two)
        still = Still(sandbox)
        # Under the original's ports it does not even start.
        done = copy.run("start")
        want(done.returncode == 1 and "a port cannot be opened" in done.stderr, f"two on one port: {done}")
        ports(copy.path("baton.toml"), two)
        copy.launch()
        try:
            shown = ("Standby", "Need repair", "Copied folder")

            def told():
                row = copy.status() or {}
                return (row.get("role"), row.get("state"), row.get("detail")) == shown

            wait_for(told, 20, lambda: f"the copy says {copy.status()}")
            sentence = "this data folder is a copy"
            for words in (
                ("failover",),
                ("failover", "--dry-run"),
                ("failover", "--force"),
                ("failover", "--alone", "--accept-loss"),
                ("promote",),
                ("start", "-M", "primary"),
            ):
                done = copy.run(*words)
                want(done.returncode == 4 and sentence in done.stderr, f"a copy that shall lead: {words}: {done}")
            port = two.port + 40
            with Node(world.baton, copy.folder, 2, port).client() as client:
                refused = client.do("REPLICAOF", "NO", "ONE")
                want(isinstance(refused, Error) and sentence in refused, f"REPLICAOF NO ONE on a copy: {refused}")
                refused = client.do("SET", "x", "copy")
                want(isinstance(refused, Error), f"a write on a copy: {refused}")
            done = copy.run("switchover")
            want(done.returncode == 4, f"a switchover to a copy: {done}")
            want(told(), f"the copy says {copy.status()}")
            still.stands("a copy of node 2 beside it")
            want("copied data folder" in one.log(), "the primary's log does not say it")
            want(two.role() == ("Standby", "Normal"), sandbox.roles())
        finally:
            copy.kill()
        # In node 3's place: under its configuration it is node 2's data, under node 2's it is not whom the others meet.
        three.kill()
        still = Still(sandbox)
        kept = three.folder + ".kept"
        os.rename(three.folder, kept)
        shutil.copytree(copy.folder, three.folder, ignore=leave)
        shutil.copy(os.path.join(kept, "baton.toml"), three.folder)
        done = three.run("start")
        want(done.returncode == 1 and "belongs to node 2" in done.stderr, f"node 2's data as node 3: {done}")
        still.stands("node 2's data as node 3")
        with open(three.path("baton.toml"), encoding="utf-8") as file:
            text = file.read()
        write(three.path("baton.toml"), text.replace("node = 3\nclient_listen", "node = 2\nclient_listen"))
        three.launch()
        try:
            wait_for(lambda: "node 2 answered where node 3 was expected" in one.log(), 20, "the primary does not notice")
            wait_for(lambda: (three.status() or {}).get("detail") == "Copied folder", 20, lambda: f"{three.status()}")
            row = [row for row in one.ask(verb="cluster_status")["result"]["nodes"] if row["node"] == 3][0]
            want("node 2 answered where node 3 was expected" in row["detail"], f"the primary shows {row}")
            want(one.ask(verb="query")["result"]["failures_survived"] == 0, "the copy is counted as a voter")
            still.before.pop(3, None)
            still.stands("node 2's folder in node 3's place")
        finally:
            three.kill()
        shutil.rmtree(three.folder)
        os.rename(kept, three.folder)
        three.start()
        sandbox.wait_caught_up(three)
        with one.client() as client:
            want(client.do("MGET", *[f"k:{n}" for n in range(200)]) == [b"%d" % n for n in range(200)], "data is gone")
        return "neither streams, votes nor leads"


# ---- FAILOVER and REPLICAOF ----


def failover_state(client):
    text = client.do("INFO", "replication").decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)["master_failover_state"]


def client_failovers(world):
    """FAILOVER and REPLICAOF NO ONE as redis-py and redis-cli send them."""
    redis, cli = library(), tool("redis-cli")
    with Sandbox(world, "clientrole", 3) as sandbox:
        one, two, three = sandbox.nodes
        sandbox.wait_primary()

        def py(node, *words):
            with redis.Redis(port=node.port, retry=None, decode_responses=True) as client:
                return client.execute_command(*words)

        def by_cli(node, *words):
            return run(cli, "-p", node.port, *words).stdout.strip()

        def refused(node, words, sentence):
            still = Still(sandbox)
            try:
                answer = py(node, *words)
            except redis.ResponseError as error:
                want(sentence in str(error), f"{words} does not say {sentence!r}: {error}")
            else:
                want(False, f"{words} is not refused: {answer}")
            said = by_cli(node, *words)
            want(sentence in said, f"redis-cli {words}: {said}")
            still.stands(" ".join(map(str, words)))

        host = "127.0.0.1"
        for words, sentence in (
            (("FAILOVER", "ABORT"), "No failover in progress"),
            (("FAILOVER", "TO", host, 9), "is not a replica"),
            (("FAILOVER", "TO", "10.9.9.9", two.port), "is not a replica"),
            (("FAILOVER", "TO", host, one.port), "is not a replica"),
            (("FAILOVER", "TO", host, "x"), "not an integer"),
            (("FAILOVER", "TO", host), "syntax error"),
            (("FAILOVER", "TIMEOUT", 0), "greater than 0"),
            (("FAILOVER", "TIMEOUT", "soon"), "not an integer"),
            (("FAILOVER", "FORCE"), "requires both a timeout and target"),
            (("FAILOVER", "TO", host, two.port, "FORCE"), "requires both a timeout and target"),
            (("FAILOVER", "TO", host, two.port, "FORCE", "TIMEOUT", 500), "would drop acknowledged writes"),
            (("FAILOVER", "TO", host, two.port, "ABORT"), "syntax error"),
            (("REPLICAOF", host, two.port), "follows the primary of its cluster by itself"),
            (("REPLICAOF", host, "x"), "Invalid master port"),
        ):
            refused(one, words, sentence)
        for words, sentence in (
            (("FAILOVER",), "not valid when server is a replica"),
            (("FAILOVER", "ABORT"), "No failover in progress"),
            (("REPLICAOF", "NO", "ONE"), "is alive as primary"),
            (("REPLICAOF", host, one.port), "follows the primary of its cluster by itself"),
        ):
            refused(two, words, sentence)
        want(py(one, "REPLICAOF", "NO", "ONE") in ("OK", True), "REPLICAOF NO ONE on the primary")

        # Done: by name, by choice, and told by a client to a standby whose primary is dead.
        want(by_cli(one, "FAILOVER", "TO", host, two.port, "TIMEOUT", 3000) == "OK", "FAILOVER TO")
        wait_for(lambda: two.role() == ("Primary", "Normal"), 20, sandbox.roles)
        for node in (one, three):
            sandbox.wait_standby(node)
        want(py(two, "FAILOVER") in ("OK", True), "FAILOVER")
        wait_for(lambda: two.role() == ("Standby", "Normal"), 20, sandbox.roles)
        leads = sandbox.wait_primary()
        with leads.client() as client:
            want(client.do("SET", "kept", "1") == b"OK", "a write")
        for node in sandbox.nodes:
            if node is not leads:
                sandbox.wait_standby(node)
        leads.kill()
        heir = two
        want(by_cli(heir, "REPLICAOF", "NO", "ONE") == "OK", f"REPLICAOF NO ONE: {sandbox.roles()}")
        wait_for(lambda: heir.role() == ("Primary", "Normal"), 20, sandbox.roles)
        want(py(heir, "GET", "kept") == "1", "a promoted standby lacks a write")
        rows = show(heir.run("cluster", "history", "--json", ok=0))["rows"]
        want(any("REPLICAOF NO ONE" in row["by"] for row in rows), f"the history does not say who asked: {rows[-3:]}")
        leads.start()
        sandbox.wait_standby(leads)
        # A target that is gone.
        other = next(node for node in (one, three) if node is not leads)
        other.kill()
        wait_for(lambda: heir.ask(verb="query")["result"]["failures_survived"] == 0, 20, "it is still counted")
        refused(heir, ("FAILOVER", "TO", host, other.port), "is not online")


def aborted(world):
    """FAILOVER ABORT while the target is asked for, and while writes are held for it; a deadline that passes."""
    with Sandbox(world, "aborts", 3) as sandbox:
        one, two, three = sandbox.nodes
        sandbox.wait_primary()
        still = Still(sandbox)
        host = "127.0.0.1"
        freeze(three)
        try:
            with one.client() as client:
                want(client.do("FAILOVER", "TO", host, three.port, "TIMEOUT", 20_000) == b"OK", "FAILOVER")
                want(failover_state(client) != "no-failover", "INFO does not show that a failover is under way")
                again = client.do("FAILOVER", "TO", host, two.port)
                want(isinstance(again, Error) and "already in progress" in again, f"a second FAILOVER: {again}")
                want(client.do("FAILOVER", "ABORT") == b"OK", "FAILOVER ABORT while the target is asked")
                want(failover_state(client) == "no-failover", "an aborted failover is still shown")
                want(client.do("SET", "x", 1) == b"OK", "writes do not go on")
        finally:
            freeze(three, signal.SIGCONT)
        sandbox.wait_standby(three)
        still.stands("FAILOVER ABORT")

        # Held: the target answers, and has a lot to flush yet.
        for attempt in range(8):
            three.kill()
            with one.client() as client:
                client.all([("SET", f"a:{attempt}:{n}", os.urandom(MIB)) for n in range(24)])
            three.launch()
            wait_for(three.status, 20, "it does not start")
            still = Still(sandbox)
            with Slowed(three), one.client() as client, one.client() as writer:
                if not draining(client, ("FAILOVER", "TO", host, three.port, "TIMEOUT", 20_000)):
                    continue
                writer.send(encode("SET", "held", 1))
                answer = client.do("FAILOVER", "ABORT")
                if answer != b"OK":
                    continue
                want(writer.read() == b"OK", "a write that was held is not done after the abort")
                want(failover_state(client) == "no-failover", "an aborted failover is still shown")
            still.stands("FAILOVER ABORT while writes were held")
            return "while it asked, and while writes were held"
        raise Broken(f"no failover was caught while writes were held: {sandbox.roles()}")


def draining(client, words):
    """Asks until the primary holds its writes for the target."""
    for _ in range(100):
        said = client.do(*words)
        want(said == b"OK" or "in progress" in said or "not online" in said, f"FAILOVER: {said}")
        for _ in range(200):
            state = failover_state(client)
            if state == "waiting-for-sync":
                return True
            if state == "no-failover":
                break
            time.sleep(0.002)
    return False


def checks(report, world):
    report.check("unfit targets of a switchover are refused, one reason each", targets, world)
    report.check("two commands at once, and the same one twice", at_once, world)
    report.check("numbers of an older view are refused", stale_numbers, world)
    report.check("commands on the wrong node or in the wrong state", wrong_places, world)
    report.check("policies that nobody can satisfy", impossible_policies, world)
    report.check("a switchover that is late, and a policy that waits", late, world)
    report.check("a standby behind itself, and a ring of two", rings, world)
    report.check("a cloned data folder beside its original, and in another node's place", clones, world)
    report.check("FAILOVER and REPLICAOF NO ONE by redis-py and redis-cli", client_failovers, world)
    report.check("FAILOVER ABORT of a running one", aborted, world)
