"""kill -9 under load, judged from outside.

Writers and readers know nothing about the cluster but its ports. Every write has a value of its own, so that what is
found later names the write that put it there. The promises:
  - a write that was answered with OK is there, or a later one of the same writer is;
  - a write that was refused is not there; one without an answer may be;
  - what any reader saw on any node was committed: it never goes back, not even over a failover;
  - a transaction is there as a whole or not at all.
"""

import os
import random
import signal
import threading
import time

from harness import Broken, Client, Error, Gone, Sandbox, encode, run, wait_for, want

KEYS = 12
BATCH = 6
# Between two pipelines of a writer. A node that is down is started over what the others wrote meanwhile: without a bound the
# data, and with it each cycle, would grow with the speed of the machine.
REST = 0.005
REFUSED = {"READONLY", "CLUSTERDOWN", "NOREPLICAS", "LOADING", "MISCONF", "OOM", "MASTERDOWN", "ERR"}


def filled(seq):
    """The value of one write: long enough that checkpoints come often."""
    return b"%d:%s" % (seq, b"x" * (seq * 7 % 6000))


class Writer(threading.Thread):
    """One connection at a time, following the primary by trying the ports in turn."""

    def __init__(self, number, ports, stop):
        super().__init__(daemon=True)
        self.number, self.ports, self.stop = number, ports, stop
        self.seq = 0
        self.acked_last = {}  # key -> newest acknowledged number
        self.unique_acked, self.unique_doubt, self.refused = [], set(), set()
        self.count_acked = self.count_sent = 0  # of INCR
        self.count_doubt = 0
        self.acknowledged = self.doubtful = self.denied = 0
        self.lock = threading.Lock()
        self.trouble = None
        self.checked = 0  # of unique_acked, by the verifier
        self.at = number

    def key(self, slot):
        return b"k:%d:%d" % (self.number, slot)

    def run(self):
        client = None
        try:
            while not self.stop.is_set():
                if client is None:
                    client = self.connect()
                    if client is None:
                        time.sleep(0.02)
                        continue
                if not self.turn(client):
                    client.close()
                    client = None
                    self.at += 1
                    time.sleep(0.01)
                self.stop.wait(REST)
        except Exception as error:  # reported by the verifier
            self.trouble = f"writer {self.number}: {type(error).__name__} {error}"
        finally:
            if client:
                client.close()

    def connect(self):
        for _ in self.ports:
            try:
                return Client(self.ports[self.at % len(self.ports)])
            except OSError:
                self.at += 1
        return None

    def turn(self, client):
        """One pipeline. False when the connection is of no use any more."""
        commands, plan = [], []
        for _ in range(BATCH):
            self.seq += 1
            seq, slot = self.seq, self.seq % KEYS
            kind = seq % 4
            if kind == 0:
                commands.append((b"SET", b"u:%d:%d" % (self.number, seq), filled(seq)))
                plan.append(("unique", seq))
            elif kind == 1:
                commands.append((b"INCR", b"c:%d" % self.number))
                plan.append(("count", seq))
                self.count_sent += 1
            elif kind == 2:
                commands.append((b"SET", self.key(slot), filled(seq)))
                plan.append(("set", seq))
            else:
                pair = b"%d" % seq
                left, right = b"a:%d" % self.number, b"b:%d" % self.number
                commands += [(b"MULTI",), (b"SET", left, pair), (b"SET", right, pair), (b"EXEC",)]
                plan += [None, None, None, ("pair", seq)]
        replies, whole = client.all(commands)
        useful = whole
        with self.lock:
            for index, step in enumerate(plan):
                if step is None:
                    continue
                useful &= self.take(step, replies[index] if index < len(replies) else None)
        return useful

    def take(self, step, reply):
        """Notes one outcome; False for an error."""
        kind, seq = step
        if isinstance(reply, Error):
            word = reply.word
            if word == "UNKNOWN":
                self.doubt(kind, seq)
            elif word in REFUSED or word == "EXECABORT":
                if word == "ERR":
                    raise Broken(f"unexpected answer: {reply}")
                self.denied += 1
                self.refused.add((kind, seq))
            else:
                raise Broken(f"an error that no client library knows: {reply}")
            return False
        if reply is None:
            self.doubt(kind, seq)
            return False
        if kind == "pair" and any(isinstance(part, Error) for part in reply):
            raise Broken(f"half a transaction: {reply}")
        self.acknowledged += 1
        if kind == "count":
            self.count_acked += 1
            want(reply <= self.count_sent, f"counter {self.number} is {reply} after {self.count_sent} increments")
            want(reply >= self.count_acked, f"counter {self.number} is {reply}, {self.count_acked} were acknowledged")
        elif kind == "unique":
            self.unique_acked.append(seq)
        else:
            self.acked_last[self.key(seq % KEYS) if kind == "set" else b"pair"] = seq
        return True

    def doubt(self, kind, seq):
        self.doubtful += 1
        if kind == "count":
            self.count_doubt += 1
        elif kind == "unique":
            self.unique_doubt.add(seq)


class Reader(threading.Thread):
    """Reads on one node for ever. What it sees never goes back."""

    def __init__(self, port, writers, seen, stop):
        super().__init__(daemon=True)
        self.port, self.writers, self.seen, self.stop = port, writers, seen, stop
        self.reads = 0
        self.trouble = None

    def run(self):
        client, mine = None, {}
        dice = random.Random(self.port)
        while not self.stop.is_set() and not self.trouble:
            try:
                if client is None:
                    client, mine = Client(self.port), {}
                writer = dice.choice(self.writers)
                keys = [writer.key(slot) for slot in range(KEYS)]
                values = client.do(b"MGET", *keys, b"a:%d" % writer.number, b"b:%d" % writer.number)
                if isinstance(values, Error):
                    client.close()
                    client = None
                    time.sleep(0.05)
                    continue
                self.look(writer, [*keys, b"a"], values, mine)
                self.reads += 1
                time.sleep(0.005)
            except (OSError, Gone):
                client = None
                time.sleep(0.05)
            except Exception as error:
                self.trouble = f"reader of port {self.port}: {type(error).__name__} {error}"

    def look(self, writer, keys, values, mine):
        a, b = values[-2:]
        want(a == b, f"a transaction of writer {writer.number} is seen in halves: {a} and {b}")
        for key, value in zip(keys, values):
            seq = int(value.split(b":")[0]) if value else 0
            name = (writer.number, key)
            want(seq >= mine.get(name, 0), f"{key} went back on one connection: {seq} after {mine.get(name)}")
            want(seq <= writer.seq, f"{key} holds {seq}, which nobody wrote yet")
            mine[name] = seq
            # One writer per key: the greatest number seen anywhere is committed and may not vanish.
            if seq > self.seen.get(name, 0):
                self.seen[name] = seq


class Load:
    def __init__(self, sandbox, writers):
        ports = [node.port for node in sandbox.nodes]
        self.sandbox, self.stop, self.seen = sandbox, threading.Event(), {}
        self.writers = [Writer(number, ports, self.stop) for number in range(writers)]
        self.readers = [Reader(port, self.writers, self.seen, self.stop) for port in ports]

    def start(self):
        for thread in [*self.writers, *self.readers]:
            thread.start()

    def end(self):
        self.stop.set()
        for thread in [*self.writers, *self.readers]:
            thread.join(30)
            want(not thread.is_alive(), "a client hangs: no answer and no end of its connection in 30 s")

    def troubles(self):
        for thread in [*self.writers, *self.readers]:
            if thread.trouble:
                raise Broken(thread.trouble)

    def verify(self, port, whole=False):
        """Compares one node with what was acknowledged before the question was asked."""
        self.troubles()
        with Client(port, timeout=30) as client:
            for writer in self.writers:
                self.verify_writer(client, writer, whole)

    def verify_writer(self, client, writer, whole):
        number = writer.number
        with writer.lock:
            last = dict(writer.acked_last)
            uniques = list(writer.unique_acked[0 if whole else writer.checked :])
            count = writer.count_acked
            refused = set(writer.refused)
        seen = {key: seq for (who, key), seq in list(self.seen.items()) if who == number}
        keys = [writer.key(slot) for slot in range(KEYS)]
        values = must(client.do(b"MGET", *keys, b"a:%d" % number, b"b:%d" % number, b"c:%d" % number))
        *values, a, b, counter = values
        want(a == b, f"the pair of writer {number} is torn: {a} and {b}")
        for key, value, floor_key in [*zip(keys, values, keys), (b"a:%d" % number, a, b"pair")]:
            seq = int(value.split(b":")[0]) if value else 0
            floor = last.get(floor_key, 0)
            want(seq >= floor, f"LOST: {key} is {seq}, {floor} was acknowledged")
            floor = seen.get(b"a" if floor_key == b"pair" else key, 0)
            want(seq >= floor, f"LOST: {key} is {seq}, {floor} was seen by a reader")
            kind = "pair" if floor_key == b"pair" else "set"
            want((kind, seq) not in refused, f"{key} holds {seq}, which was refused")
            if kind == "set" and value:
                want(value == filled(seq), f"{key} holds a damaged value")
        counter = int(counter or 0)
        want(counter >= count, f"LOST: counter {number} is {counter}, {count} increments were acknowledged")
        if whole:
            want(
                counter <= count + writer.count_doubt,
                f"counter {number} is {counter}: {count} acknowledged and {writer.count_doubt} in doubt",
            )
        for at in range(0, len(uniques), 500):
            some = uniques[at : at + 500]
            found = must(client.do(b"MGET", *[b"u:%d:%d" % (number, seq) for seq in some]))
            for seq, value in zip(some, found):
                want(value == filled(seq), f"LOST: u:{number}:{seq} was acknowledged and is {value and value[:40]}")
        if whole:
            gone = sorted(seq for kind, seq in refused if kind == "unique")
            for at in range(0, len(gone), 500):
                some = gone[at : at + 500]
                found = must(client.do(b"MGET", *[b"u:%d:%d" % (number, seq) for seq in some]))
                for seq, value in zip(some, found):
                    want(value is None, f"u:{number}:{seq} was refused and is there")
        else:
            writer.checked += len(uniques)

    def verify_everywhere(self):
        """Everything that was acknowledged, on the primary and then on every standby."""
        primary = self.sandbox.wait_primary()
        self.verify(primary.port, whole=True)
        for node in self.sandbox.nodes:
            if node is not primary:
                self.sandbox.wait_caught_up(node)
                self.verify(node.port, whole=True)

    def verify_through(self, seconds=15):
        """As `verify`, on whoever is primary; a primary that changes meanwhile is looked for again."""
        end = time.monotonic() + seconds
        while True:
            primary = self.sandbox.wait_primary()
            try:
                return self.verify(primary.port)
            except (OSError, Gone, Unserved):
                if time.monotonic() > end:
                    raise

    def progress(self, seconds=15):
        """Somebody gets a write acknowledged from now on."""
        begin = sum(writer.acknowledged for writer in self.writers)

        def moved():
            self.troubles()
            return sum(writer.acknowledged for writer in self.writers) > begin + 20

        wait_for(moved, seconds, lambda: f"no write is acknowledged: {self.sandbox.roles()}")

    def counts(self):
        return "{} acknowledged, {} in doubt, {} refused, {} reads".format(
            sum(w.acknowledged for w in self.writers),
            sum(w.doubtful for w in self.writers),
            sum(w.denied for w in self.writers),
            sum(r.reads for r in self.readers),
        )


class Unserved(Exception):
    pass


def must(reply):
    if isinstance(reply, Error):
        raise Unserved(reply)
    return reply


def failover(sandbox, node, words=(), seconds=20):
    """Asks until it is done: a candidate may lose a race or miss a voter that is just starting."""
    end = time.monotonic() + seconds
    while True:
        done = node.run("failover", "--timeout", "5s", *words)
        if done.returncode == 0:
            return sandbox.wait_primary()
        # A restarted primary asks by itself, and may have been first.
        if node.role()[0] == "Primary" or "is alive as primary" in done.stderr:
            return sandbox.wait_primary()
        if time.monotonic() > end:
            raise Broken(f"failover on node {node.id}: {done.stderr.strip()[:400]}; {sandbox.roles()}")
        time.sleep(0.05)


class Cycles:
    """The faults. Each leaves a cluster in which every node is up and streams."""

    def __init__(self, sandbox, load, dice):
        self.sandbox, self.load, self.dice = sandbox, load, dice
        self.done = {}
        self.outage = []

    def others(self, node):
        return [other for other in self.sandbox.nodes if other is not node]

    def kill_standby(self):
        node = self.dice.choice(self.others(self.sandbox.wait_primary()))
        node.kill()
        if len(self.sandbox.nodes) > 2:
            self.load.progress()
        node.launch()
        self.sandbox.wait_standby(node)
        self.sandbox.wait_caught_up(node)

    def kill_primary(self):
        old = self.sandbox.wait_primary()
        begin = time.monotonic()
        old.kill()
        if len(self.sandbox.nodes) == 2:
            # 1+1: the standby needs the old primary's copy before anything commits; the old one shall not ask itself.
            old.launch("-M", "standby")
        new = self.dice.choice(self.others(old))
        failover(self.sandbox, new)
        self.outage.append(time.monotonic() - begin)
        self.load.progress()
        self.load.verify_through()
        if len(self.sandbox.nodes) > 2:
            old.launch()
        self.sandbox.wait_standby(old)
        self.sandbox.wait_caught_up(old)

    def kill_primary_keep_it(self):
        """The old primary comes back before anybody took over, and wins its own next term."""
        old = self.sandbox.wait_primary()
        old.kill()
        old.launch("-M", "primary")
        try:
            wait_for(lambda: old.role() == ("Primary", "Normal"), 8, "")
        except Broken:
            failover(self.sandbox, old)
        self.load.progress()

    def kill_all(self):
        order = list(self.sandbox.nodes)
        self.dice.shuffle(order)
        for node in order:
            node.kill()
        self.dice.shuffle(order)
        first = order[0]
        by_role = self.dice.random() < 0.5
        for node in order:
            node.launch(*(["-M", "primary"] if by_role and node is first else []))
        if by_role:
            try:
                wait_for(lambda: first.role() == ("Primary", "Normal"), 8, "")
            except Broken:
                failover(self.sandbox, first)
        else:
            failover(self.sandbox, first)
        self.load.progress()

    def kill_during_failover(self):
        """The new primary dies too, a moment after it was asked to take over."""
        old = self.sandbox.wait_primary()
        old.kill()
        new, third = self.dice.sample(self.others(old), 2)
        old.launch()
        asked = threading.Thread(target=lambda: new.run("failover", "--timeout", "3s"))
        asked.start()
        time.sleep(self.dice.random() * 0.5)
        new.kill()
        asked.join()
        if self.sandbox.primary() is None:
            failover(self.sandbox, self.dice.choice([old, third]))
        self.load.progress()
        new.launch()

    def pause_primary(self):
        """The primary stands still, is replaced, and wakes up believing it still leads."""
        old = self.sandbox.wait_primary()
        pid = old.pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self.dice.random() * 1.5)
            new = self.dice.choice(self.others(old))
            end = time.monotonic() + 25
            while new.run("failover", "--timeout", "5s").returncode != 0:
                want(time.monotonic() < end, f"nobody replaces a primary that stands still: {self.sandbox.roles()}")
                time.sleep(0.1)
            self.load.progress()
        finally:
            os.kill(pid, signal.SIGCONT)
        self.sandbox.wait_standby(old)
        want(old.pid() == pid, "the old primary died")

    def settle(self):
        """Every node up, one primary, the rest streams."""
        primary = self.sandbox.wait_primary()
        for node in self.sandbox.nodes:
            if not node.alive():
                node.launch()
        for node in self.others(primary):
            self.sandbox.wait_standby(node)

    def one(self, number):
        # Standing still costs seconds of silence: now and then is enough.
        slow = len(self.sandbox.nodes) > 2 and number % 12 == 6
        kinds = [self.kill_primary] * 5 + [self.kill_standby] * 4 + [self.kill_primary_keep_it] + [self.kill_all] * 2
        if len(self.sandbox.nodes) > 2:
            kinds += [self.kill_during_failover]
        kind = self.pause_primary if slow else self.dice.choice(kinds)
        name = kind.__name__
        self.done[name] = self.done.get(name, 0) + 1
        try:
            kind()
            self.settle()
            self.load.verify_through()
            want(not self.sandbox.panics(), self.sandbox.panics())
        except Exception as error:
            raise Broken(f"cycle {number} ({name}): {error} [{self.load.counts()}]") from error


def cycles(world, nodes, count):
    """`count` kills on one cluster, and the whole truth at the end."""
    dice = random.Random(world.seed * 100 + nodes)
    # Little memory: pages are written, dropped and read again while nodes die.
    with Sandbox(world, f"kills{nodes}", nodes, config={"memory": '"64MiB"'}) as sandbox:
        load = Load(sandbox, writers=3)
        load.start()
        faults = Cycles(sandbox, load, dice)
        try:
            load.progress()
            for number in range(1, count + 1):
                faults.one(number)
            load.end()
            load.troubles()
        finally:
            load.stop.set()
        load.verify_everywhere()
        kinds = ", ".join(f"{name} {times}" for name, times in sorted(faults.done.items()))
        slowest = f"{max(faults.outage):.1f}" if faults.outage else "-"
        return f"seed {world.seed}, {count} kills ({kinds}), slowest takeover {slowest} s, {load.counts()}"


def survives_stop_and_start(world):
    """`stop` and `restart` in order, under load; and `sandbox up` again on the same folder."""
    with Sandbox(world, "orderly", 3) as sandbox:
        load = Load(sandbox, writers=2)
        load.start()
        try:
            load.progress()
            for round_ in range(3):
                primary = sandbox.wait_primary()
                primary.run("stop", "-m", "immediate" if round_ == 1 else "fast", ok=0)
                other = next(node for node in sandbox.nodes if node is not primary)
                failover(sandbox, other)
                load.progress()
                primary.start()
                sandbox.wait_standby(primary)
                load.verify_through()
            load.end()
            load.troubles()
        finally:
            load.stop.set()
        run(world.baton, "sandbox", "down", "--dir", sandbox.folder, ok=0)
        for node in sandbox.nodes:
            want(not node.alive(), f"node {node.id} is still there after `sandbox down`")
        sandbox.up()
        load.verify(sandbox.wait_primary().port, whole=True)
        return load.counts()


def in_step(world):
    """A pipeline whose commits time out: one answer for each command, and the connection goes on in step."""
    with Sandbox(world, "instep", 2, "--commit-timeout", "600ms") as sandbox:
        primary, standby = sandbox.node(1), sandbox.node(2)
        with primary.client() as client:
            want(client.do("SET", "before", "1") == b"OK", "a first write")
            pid = standby.pid()
            os.kill(pid, signal.SIGSTOP)
            try:
                commands = [("SET", "held", "2"), ("PING",), ("PING",), ("ECHO", "a"), ("MULTI",), ("SET", "held", "3"),
                            ("INCR", "number"), ("EXEC",), ("PING",), ("PING",), ("SET", "held", "4"), ("GET", "held")]
                replies, whole = client.all(commands)
                want(whole, f"the connection ended: {replies}")
                for command, reply in zip(commands, replies):
                    word = reply.word if isinstance(reply, Error) else None
                    if command[0] in ("EXEC",) or (command[0] == "SET" and reply != b"QUEUED"):
                        # Inside MULTI a refused SET is an error line as well; it was never carried out by itself.
                        want(word in ("UNKNOWN", "CLUSTERDOWN", "NOREPLICAS"), f"{command} without its standby: {reply}")
                want([replies[0].word, replies[7].word, replies[10].word] == ["UNKNOWN"] * 3,
                     f"writes in doubt are answered {replies}")
                client.send(encode("ECHO", "in step"))
            finally:
                os.kill(pid, signal.SIGCONT)
            reply = client.read()
            want(reply == b"in step" or isinstance(reply, Error), f"answers are out of step: ECHO gives {reply}")
        sandbox.wait_standby(standby)

        def goes_on():
            with primary.client() as again:
                return again.do("SET", "after", "1") == b"OK"

        wait_for(goes_on, 15, "writes do not go on after the standby came back")
        with primary.client() as client:
            want(client.do("GET", "held") == b"4", "what was in doubt was committed in the end, in order")


def judge(world):
    """The judge itself: a loss that is made on purpose must not pass."""
    with Sandbox(world, "judge", 1) as sandbox:
        port = sandbox.node(1).port
        load = Load(sandbox, writers=1)
        load.start()
        load.progress()
        load.end()
        writer = load.writers[0]
        load.verify(port, whole=True)
        with Client(port) as client:
            unique = b"u:0:%d" % writer.unique_acked[-1]
            for command, undo in [
                ((b"DEL", unique), (b"SET", unique, filled(writer.unique_acked[-1]))),
                ((b"DECR", b"c:0"), (b"INCR", b"c:0")),
                ((b"SET", b"a:0", b"1"), (b"SET", b"a:0", b"%d" % writer.acked_last[b"pair"])),
            ]:
                must(client.do(*command))
                try:
                    load.verify(port, whole=True)
                except Broken:
                    pass
                else:
                    raise Broken(f"a planted loss is not found: {command}")
                must(client.do(*undo))
        load.verify(port, whole=True)
        writer.refused.add(("unique", writer.unique_acked[-1]))
        try:
            load.verify(port, whole=True)
        except Broken:
            return "finds a lost key, a lost increment, a torn pair, a refused write"
        raise Broken("a refused write that is there is not found")


def checks(report, world):
    report.check("the judge finds planted losses", judge, world)
    report.check("answers stay in step when commits time out", in_step, world)
    many = 600 if world.long else 40
    few = 150 if world.long else 14
    report.check("kill -9 cycles, three nodes", cycles, world, 3, many)
    report.check("kill -9 cycles, one and one", cycles, world, 2, few)
    report.check("orderly stop, takeover and restart under load", survives_stop_and_start, world)
