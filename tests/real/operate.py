"""What operators do: roles, switchovers, policies, a changed configuration, history. And what they do wrongly."""

import json
import os
import subprocess
import time

from harness import Error, Sandbox, run, wait_for, want


def show(done):
    return json.loads(done.stdout.strip().splitlines()[-1])


def refused(node, words, sentence, code=4):
    """The command is refused with one clear sentence and an exit code, and nothing changes."""
    before = (node.ask(verb="policy_show")["result"]["generation"], node.ask(verb="query")["result"]["term"])
    done = node.run(*words)
    shown = " ".join(map(str, words))
    want(done.returncode == code, f"baton {shown}: exit {done.returncode}, not {code}: {done.stderr.strip()[:300]}")
    want(sentence in done.stderr, f"baton {shown} does not say {sentence!r}: {done.stderr.strip()[:300]}")
    want("panicked" not in done.stderr, f"baton {shown} panicked")
    after = (node.ask(verb="policy_show")["result"]["generation"], node.ask(verb="query")["result"]["term"])
    want(before == after, f"baton {shown} changed {before} to {after}")


def reads_own_writes(world):
    """A position from the primary makes a standby wait until it shows the write."""
    with Sandbox(world, "own-writes", 3) as sandbox:
        primary, standby = sandbox.wait_primary(), sandbox.node(2)
        with primary.client() as writer, standby.client() as reader:
            want(writer.do("BATON.LSN") == 0, "a connection that wrote nothing has a position")
            for n in range(300):
                writer.do("SET", "own", n)
                lsn = writer.do("BATON.LSN")
                want(reader.do("BATON.WAITLSN", lsn, 5000) == b"OK", f"lsn {lsn} was not reached")
                found = reader.do("GET", "own")
                want(int(found) >= n, f"after WAITLSN {lsn} the standby reads {found}, not {n}")
            # In one batch: the position of a write whose frame is not sealed yet.
            replies, whole = writer.all([("SET", "own", 1000), ("BATON.LSN",)])
            want(whole and replies[1] > lsn, f"a pipelined position: {replies}")
            late = reader.do("BATON.WAITLSN", replies[1] + (1 << 30), 50)
            want(isinstance(late, Error) and late.word == "TIMEOUT", f"a position that nobody has: {late!r}")
            for bad in (("x", 1), (1, "x"), (1, -1), ("1/2/3", 1), (-5, 1)):
                want(isinstance(reader.do("BATON.WAITLSN", *bad), Error), f"BATON.WAITLSN {bad} is taken")
        return "300 writes read back on a standby at once"


def one_replication_id(world):
    with Sandbox(world, "replid", 3) as sandbox:

        def ids():
            found = []
            for node in sandbox.nodes:
                with node.client() as client:
                    text = client.do("INFO", "replication").decode()
                found.append(dict(line.split(":", 1) for line in text.splitlines() if ":" in line))
            return found

        first = {row["master_replid"] for row in ids()}
        want(len(first) == 1 and len(next(iter(first))) == 40, f"ids of one cluster: {first}")
        sandbox.wait_primary().kill()
        sandbox.node(2).run("failover", ok=0)
        sandbox.node(1).start()
        for node in (sandbox.node(1), sandbox.node(3)):
            sandbox.wait_standby(node)
        rows = ids()
        want({row["master_replid2"] for row in rows} == first, "the id before is not the second one")
        want(len({row["master_replid"] for row in rows}) == 1, "after a failover the ids differ")


def roles_by_hand(world):
    """-M standby, -M pending, on a node that starts and on one that runs."""
    with Sandbox(world, "roles", 3) as sandbox:
        three = sandbox.node(3)
        three.run("start", "-M", "pending", ok=0)
        want(three.role()[0] == "Pending", f"told to be pending: {three.role()}")
        with three.client() as client:
            want(client.do("GET", "x").word == "CLUSTERDOWN", "a pending node answers reads")
        three.run("stop", ok=0)
        three.start("-M", "pending")
        with sandbox.wait_primary().client() as client:
            client.do("SET", "x", 1)
        time.sleep(1)
        want(three.role()[0] == "Pending", f"it does not stay pending: {three.role()}")
        three.run("start", "-M", "standby", ok=0)
        sandbox.wait_caught_up(three)
        refused(three, ("start", "-M", "cascade_standby"), "has no upstream", 2)
        refused(sandbox.node(1), ("start", "-M", "standby"), "is alive as primary")
        # Alone, and asked to be a standby, it does not lead.
        run(world.baton, "cluster", "stop", "--dir", sandbox.folder, ok=0)
        begin = time.monotonic()
        run(world.baton, "sandbox", "start", "1", "--dir", sandbox.folder, "-M", "standby", ok=0)
        took = time.monotonic() - begin
        want(sandbox.node(1).role()[0] == "Standby", f"-M standby: {sandbox.node(1).role()}")
        return f"a start without a primary took {took:.1f} s"


def whole_cluster(world):
    """cluster stop leaves every standby with the end of the log; cluster start goes on from there."""
    with Sandbox(world, "whole", 3) as sandbox:
        with sandbox.wait_primary().client() as client:
            client.all([("SET", f"k{n}", "v" * 1000) for n in range(2000)])
        stopped = show(run(world.baton, "cluster", "stop", "--dir", sandbox.folder, "--json", ok=0))
        want(sorted(stopped["stopped"]) == [1, 2, 3], f"{stopped}")
        held = {row["node"]: row["flushed_lsn"] for row in stopped["standbys"]}
        want(held == {2: stopped["final_lsn"], 3: stopped["final_lsn"]}, f"a standby lacks log: {stopped}")
        started = show(run(world.baton, "cluster", "start", "--dir", sandbox.folder, "--json", ok=0))
        with sandbox.node(started["primary"]).client() as client:
            want(client.do("DBSIZE") == 2000, "keys are missing after the restart")
        history = show(run(world.baton, "cluster", "history", "--dir", sandbox.folder, "--json", ok=0))["rows"]
        whats = [row["what"] for row in history if row["node"] == started["primary"]]
        for what in ("start", "stop", "role", "serve"):
            want(what in whats, f"the history of node {started['primary']} has no row {what}: {whats}")


def changed_configuration(world):
    with Sandbox(world, "reload", 1) as sandbox:
        node = sandbox.node(1)

        def edit(key, value):
            with open(node.path("baton.toml"), encoding="utf-8") as file:
                lines = [line for line in file.read().split("\n") if not line.startswith(f"{key} =")]
            with open(node.path("baton.toml"), "w", encoding="utf-8") as file:
                file.write("\n".join([f"{key} = {value}", *lines]))

        edit("commit_timeout", '"7s"')
        edit("memory", '"512MiB"')
        edit("client_password", '"hidden-word"')
        result = show(node.run("reload", "--json", ok=0))
        want({row["key"] for row in result["applied"]} == {"commit_timeout", "client_password"}, f"{result}")
        want([row["key"] for row in result["restart"]] == ["memory"], f"{result}")
        want("hidden-word" not in json.dumps(result), "a secret is shown")
        with node.client() as client:
            want(client.do("GET", "x").word == "NOAUTH", "the new password is not asked for")
        edit("commit_timeout", '"9s"')
        os.kill(node.pid(), 1)
        wait_for(
            lambda: node.ask(verb="config_show")["result"]["commit_timeout"] == "9s", 10, "SIGHUP changed nothing"
        )
        edit("commit_timeout", '"9 bananas"')
        done = node.run("reload")
        want(done.returncode == 2 and "commit_timeout" in done.stderr, f"a bad file: {done}")
        want(node.ask(verb="config_show")["result"]["commit_timeout"] == "9s", "a bad file changed something")


def trigger_file(world):
    with Sandbox(world, "trigger", 3) as sandbox:
        two = sandbox.node(2)
        run(world.baton, "cluster", "stop", "--dir", sandbox.folder, ok=0)
        with open(two.path("baton.toml"), encoding="utf-8") as file:
            text = file.read()
        with open(two.path("baton.toml"), "w", encoding="utf-8") as file:
            file.write(f'promote_trigger_file = "promote"\n{text}')
        two.launch()
        sandbox.node(3).launch()
        wait_for(lambda: two.status() and sandbox.node(3).status(), 20, "the standbys do not start")
        with open(two.path("promote"), "w", encoding="utf-8"):
            pass
        wait_for(lambda: two.role() == ("Primary", "Normal"), 20, lambda: f"not promoted: {sandbox.roles()}")
        want(not os.path.exists(two.path("promote")), "the trigger file is still there")
        rows = show(two.run("cluster", "history", "--json", ok=0))["rows"]
        want(any("trigger-file" in row["by"] for row in rows), f"the history does not say who asked: {rows[-3:]}")


def delayed_standby(world):
    """A delayed standby shows the past, counts for commits, and applies everything before it leads."""
    with Sandbox(world, "delayed", 3) as sandbox:
        run(world.baton, "cluster", "stop", "--dir", sandbox.folder, ok=0)
        for node in sandbox.nodes:
            with open(node.path("baton.toml"), encoding="utf-8") as file:
                text = file.read()
            head, mark, tail = text.partition("[[member]]\nnode = 3\n")
            with open(node.path("baton.toml"), "w", encoding="utf-8") as file:
                file.write(f'{head}{mark}apply_delay = "3s"\n{tail}')
        run(world.baton, "cluster", "start", "--dir", sandbox.folder, ok=0)
        primary, three = sandbox.wait_primary(), sandbox.node(3)
        with primary.client() as writer, three.client() as reader:
            want(writer.do("SET", "late", 1) == b"OK", "a write")
            lsn, wrote = writer.do("BATON.LSN"), time.monotonic()
            want(reader.do("GET", "late") is None, "the delayed standby shows the write at once")
            want(reader.do("BATON.WAITLSN", lsn, 20_000) == b"OK", "the delayed standby never shows the write")
            took = time.monotonic() - wrote
            want(took > 2.5, f"it came after {took:.1f} s, not 3")
            sender = [row for row in primary.ask(verb="query")["result"]["senders"] if row["node"] == 3]
            want(sender[0]["apply_delay_ms"] == 3000, f"query does not show the delay: {sender}")
            writer.do("SET", "late", 2)
        primary.kill()
        three.run("failover", ok=0)
        with three.client() as client:
            want(client.do("GET", "late") == b"2", "a promoted delayed standby lacks a write")
        return f"shown after {took:.1f} s"


def wrong_commands(world):
    with Sandbox(world, "wrong", 3) as sandbox:
        one, two = sandbox.wait_primary(), sandbox.node(2)
        for node in (one, two):
            refused(node, ("switchover", "--to", 9), "no member of this cluster")
            refused(node, ("switchover", "--expect-term", 99), "the newest term here is")
            refused(node, ("policy", "set", "ANY 7 (1, 2, 3)"), "k = 7 needs at least 8 voters")
            refused(node, ("policy", "set", "ANY 1 (1, 2, 9)"), "voter 9 is not a member")
            refused(node, ("policy", "set", "SOME 1"), "is not a synchronous rule")
            refused(node, ("policy", "set", "ANY 1 (1, 1)"), "named twice")
        refused(two, ("failover",), "is alive as primary")
        refused(two, ("failover", "--force", "--expect-term", 99), "the newest term here is")
        with one.client() as primary, two.client() as standby:
            said = [
                (primary, ("FAILOVER", "ABORT"), "No failover in progress"),
                (primary, ("FAILOVER", "TO", "127.0.0.1", 9), "is not a replica"),
                (primary, ("FAILOVER", "FORCE"), "requires both a timeout and target"),
                (primary, ("FAILOVER", "TIMEOUT", 0), "greater than 0"),
                (primary, ("FAILOVER", "NOW"), "syntax error"),
                (primary, ("REPLICAOF", "127.0.0.1", two.port), "follows the primary of its cluster by itself"),
                (standby, ("FAILOVER",), "not valid when server is a replica"),
                (standby, ("REPLICAOF", "127.0.0.1", two.port), "follows the primary of its cluster by itself"),
                (standby, ("REPLICAOF", "NO", "ONE"), "is alive as primary"),
            ]
            for client, words, sentence in said:
                answer = client.do(*words)
                want(isinstance(answer, Error) and sentence in answer, f"{words}: {answer!r}")
            want(primary.do("REPLICAOF", "NO", "ONE") == b"OK", "a primary is promoted already")
            want(primary.do("SET", "x", 1) == b"OK", "writes do not go on")


def failovers(world):
    """kill -9 of the primary under load, a failover, the dead node back, again and again; a pair's last node alone."""
    times = 30 if world.long else 5
    notes = []
    for name, nodes, words in (("failovers", 3, ()), ("alone", 2, ("--alone",))):
        with Sandbox(world, name, nodes) as sandbox:
            words = ("drill", "--dir", sandbox.folder, "--kill", "--times", times, "--writers", 20, "--json", *words)
            report = show(run(world.baton, *words, timeout=600, ok=0))
            want(report["completed"] == times and report["lost"] == 0, f"{report}")
            want(report["pages_copied"] == 0, f"a rejoin copied pages: {report}")
            notes.append(f"{name} {report['first_write_ms']['p50']:.0f} ms")
    return ", ".join(notes)


def switchovers(world):
    """There and back under load; a third time the same request under its op id."""
    with Sandbox(world, "switch", 3) as sandbox:
        times = 30 if world.long else 6
        report = show(
            run(world.baton, "drill", "--dir", sandbox.folder, "--times", times, "--json", timeout=300, ok=0)
        )
        want(report["completed"] == times and report["lost"] == 0, f"{report}")
        refused(sandbox.node(1), ("switchover", "--to", 1), "it is the primary already")
        term = sandbox.node(1).ask(verb="query")["result"]["term"]
        words = ("switchover", "--to", 3, "--expect-term", term, "--op", "once", "--json")
        done = [show(sandbox.node(2).run(*words, ok=0)) for _ in range(2)]
        want(done[0] == done[1] and done[0]["leader"] == 3, f"{done}")
        sandbox.wait_standby(sandbox.node(1))
        with sandbox.node(3).client() as client:
            want(client.do("FAILOVER", "TO", "127.0.0.1", sandbox.node(1).port) == b"OK", "FAILOVER")
        wait_for(lambda: sandbox.node(1).role() == ("Primary", "Normal"), 20, sandbox.roles)
        sandbox.wait_standby(sandbox.node(2))
        # A target that does not answer is refused, and writes go on.
        os.kill(sandbox.node(2).pid(), 19)
        try:
            done = sandbox.node(1).run("switchover", "--to", 2, "--timeout", "1s")
            want(done.returncode in (4, 5), f"a frozen target: {done}")
            with sandbox.node(1).client() as client:
                want(client.do("SET", "after", 1) == b"OK", "writes do not go on after a refused switchover")
        finally:
            os.kill(sandbox.node(2).pid(), 18)
        sandbox.wait_standby(sandbox.node(2))
        rows = show(sandbox.node(1).run("cluster", "history", "--json", ok=0))["rows"]
        want(any("FAILOVER" in row["by"] or "switchover" in row["by"] for row in rows), f"{rows[-3:]}")
        gap = report["gap_ms"]
        return f"{times} switchovers, gap p50 {gap['p50']} ms, max {gap['max']} ms"


def unfit_targets(world):
    """Whom the configuration keeps from leading, and two operators at once."""
    with Sandbox(world, "unfit", 4) as sandbox:
        run(world.baton, "cluster", "stop", "--dir", sandbox.folder, ok=0)
        tags = {2: "nofailover = true", 4: "upstream = 2"}
        for node in sandbox.nodes:
            with open(node.path("baton.toml"), encoding="utf-8") as file:
                text = file.read()
            for number, tag in tags.items():
                text = text.replace(f"[[member]]\nnode = {number}\n", f"[[member]]\nnode = {number}\n{tag}\n")
            with open(node.path("baton.toml"), "w", encoding="utf-8") as file:
                file.write(text)
        run(world.baton, "cluster", "start", "--dir", sandbox.folder, ok=0)
        primary = sandbox.wait_primary()
        want(primary.id in (1, 3), f"node {primary.id} leads, which it never should")
        for node in sandbox.nodes[:3]:
            refused(node, ("switchover", "--to", 2), "configured never to take over")
            refused(node, ("switchover", "--to", 4), "cannot take over")
        primary.kill()
        refused(sandbox.node(2), ("failover",), "configured never to take over")
        other = sandbox.node(4 - primary.id)
        other.run("failover", ok=0)
        primary.start()
        sandbox.wait_standby(primary)
        sandbox.wait_standby(sandbox.node(2))
        # Two at once: never both, and never a cluster without a primary.
        asked = [other, sandbox.node(2)]
        pool = [
            subprocess.Popen(
                [world.baton, "switchover", "--to", str(primary.id), "-D", node.folder],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for node in asked
        ]
        ends = [(one.communicate(timeout=60)[1], one.returncode) for one in pool]
        want(0 in [code for _, code in ends], f"two at once: none was done: {ends}")
        want(all(code in (0, 4, 5) for _, code in ends), f"two at once: {ends}")
        wait_for(lambda: primary.role() == ("Primary", "Normal"), 20, sandbox.roles)
        with primary.client() as client:
            want(client.do("SET", "x", 1) == b"OK", "writes do not go on")
        return f"two at once ended with exit codes {sorted(code for _, code in ends)}"


def policies(world):
    with Sandbox(world, "policy", 3) as sandbox:
        one, two = sandbox.wait_primary(), sandbox.node(2)
        begin = one.ask(verb="policy_show")["result"]
        want(begin["failures_survived"] == 1, f"{begin}")
        want(two.ask(verb="policy_show")["result"] == begin, "a standby knows another policy than the primary")
        done = show(two.run("policy", "set", "ANY 2 (1, 2, 3)", "--op", "p1", "--json", ok=0))
        want(done["generation"] > begin["generation"], f"{done}")
        again = show(two.run("policy", "set", "ANY 2 (1, 2, 3)", "--op", "p1", "--json", ok=0))
        want(again == done, f"asked again: {again}, not {done}")
        refused(one, ("policy", "set", "ANY 1 (1, 2, 3)", "--expect-generation", begin["generation"]), "not")
        refused(one, ("policy", "set", "ANY 1 (1, 2, 3)"), "")
        one.run("policy", "set", "ANY 1 (1, 2, 3)", "--force", ok=0)
        rows = show(one.run("cluster", "history", "--json", ok=0))["rows"]
        want(sum(row["what"] == "policy" for row in rows) >= 3, f"{rows}")
        with one.client() as client:
            want(client.do("SET", "x", 1) == b"OK", "writes do not go on")


def checks(report, world):
    report.check("a position makes reads on a standby see the own writes", reads_own_writes, world)
    report.check("all nodes show one replication id, and the one before", one_replication_id, world)
    report.check("roles by hand: pending, standby, and what does not fit", roles_by_hand, world)
    report.check("the whole cluster stops and starts without a gap in any log", whole_cluster, world)
    report.check("a changed configuration says key by key what took effect", changed_configuration, world)
    report.check("a trigger file promotes once and is remembered", trigger_file, world)
    report.check("a delayed standby shows the past and leads with everything", delayed_standby, world)
    report.check("wrong role and policy commands are refused in one sentence", wrong_commands, world)
    report.check("switchovers there and back under load lose nothing", switchovers, world)
    report.check("failovers after kill -9 under load lose nothing, the dead node follows", failovers, world)
    report.check("unfit targets are refused by name, two operators at once do no harm", unfit_targets, world)
    report.check("a policy is changed from any node, once, and kept", policies, world)
