"""What nobody should send. The node stays up, says why, and loses nothing."""

import random
import socket
import time

from harness import Broken, Error, Gone, Sandbox, encode, wait_for, want


class Witness:
    """Data that must be there after every mischief, and a node that must still be the same process."""

    def __init__(self, node, name):
        self.node, self.name, self.count = node, name, 200
        with node.client() as client:
            replies, whole = client.all(
                [("SET", f"{name}:{n}", f"value-{n}") for n in range(self.count)]
            )
        want(whole and all(reply == b"OK" for reply in replies), f"the witness cannot be written: {replies[-1:]}")
        self.pid = node.pid()

    def still(self, same_process=True):
        if same_process:
            want(self.node.pid() == self.pid and self.node.alive(), f"node {self.node.id} died: {self.node.log()[-400:]}")
        with self.node.client() as client:
            found = client.do("MGET", *[f"{self.name}:{n}" for n in range(self.count)])
        lost = [n for n, value in enumerate(found) if value != b"value-%d" % n]
        want(not lost, f"{len(lost)} witness values are gone, first {lost[:3]}")


# ---- the client port ----

MISCHIEF = [
    ("negative count", b"*-5\r\n", None),
    ("count beyond all bounds", b"*3000000000\r\n", b"-ERR Protocol error: invalid multibulk length"),
    ("count that is no number", b"*x\r\n", b"-ERR Protocol error: invalid multibulk length"),
    ("negative length", b"*1\r\n$-1\r\n", b"-ERR Protocol error: invalid bulk length"),
    ("length beyond all bounds", b"*1\r\n$9223372036854775807\r\n", b"-ERR Protocol error: invalid bulk length"),
    ("length that overflows", b"*1\r\n$99999999999999999999999\r\n", b"-ERR Protocol error"),
    ("array in an array", b"*1\r\n*1\r\n$4\r\nPING\r\n", b"-ERR Protocol error: expected '$'"),
    ("arrays in arrays", b"*1\r\n" * 100_000, b"-ERR Protocol error: expected '$'"),
    ("no CRLF behind a value", b"*1\r\n$4\r\nPINGxx", b"-ERR Protocol error"),
    ("unbalanced quotes", b'SET a "b\r\n', b"-ERR Protocol error: unbalanced quotes"),
    ("endless inline line", b"A" * 200_000, b"-ERR Protocol error: too big inline request"),
    ("zeroes", b"\0" * 100_000, b"-ERR Protocol error"),
    ("an HTTP request", b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nFLUSHALL\r\n", b""),
    ("another one", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nFLUSHALL\r\n", b"-ERR wrong number of arguments for 'get' command\r\n"),
    ("a TLS hello", bytes.fromhex("1603010200010001fc0303") + b"\xaa" * 300 + b"\r\n", b"-"),
]


def shout(port, data, seconds=3.0):
    """Sends bytes and gives back everything that comes until the end or a silence."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
        got = b""
        try:
            link.sendall(data)
        except OSError:
            pass
        link.settimeout(0.3)
        try:
            while len(got) < 1 << 20:
                piece = link.recv(65536)
                if not piece:
                    return got, True
                got += piece
        except TimeoutError:
            return got, False
        except OSError:
            return got, True


def bad_requests(world, sandbox):
    node = sandbox.wait_primary()
    witness = Witness(node, "req")
    for name, data, answer in MISCHIEF:
        got, ended = shout(node.port, data)
        if answer is None:
            # Redis takes an empty or negative count for nothing at all.
            want(not got.startswith(b"+"), f"{name}: answered {got[:80]!r}")
        else:
            want(got.startswith(answer) and (answer or not got), f"{name}: answered {got[:120]!r}, not {answer!r}")
            if b"HTTP" in data:
                want(ended and got == answer, f"{name}: a browser can send commands: {got[:200]!r}")
            if answer.startswith(b"-ERR Protocol"):
                want(ended, f"{name}: the connection stays open after a broken request")
        witness.still()
    # The same on a standby.
    standby = next(other for other in sandbox.nodes if other is not node)
    pid = standby.pid()
    for name, data, _ in MISCHIEF:
        shout(standby.port, data)
    want(standby.pid() == pid and standby.alive(), "the standby died")
    return f"{len(MISCHIEF)} kinds on primary and standby"


def random_bytes(world, sandbox):
    """Valid pipelines with flipped, cut and repeated bytes, many connections."""
    node = sandbox.wait_primary()
    witness = Witness(node, "rnd")
    dice = random.Random(world.seed)
    rounds = 3000 if world.long else 300
    for _ in range(rounds):
        good = b"".join(
            dice.choice(
                [
                    encode("SET", "junk:%d" % dice.randrange(50), "x" * dice.randrange(200)),
                    encode("GET", "junk:1"),
                    encode("MULTI"),
                    encode("INCR", "junk:n"),
                    encode("EXEC"),
                    encode("SCAN", 0, "COUNT", 10),
                    b"PING\r\n",
                ]
            )
            for _ in range(dice.randrange(1, 8))
        )
        bad = bytearray(good)
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(bad))
            kind = dice.randrange(3)
            if kind == 0:
                bad[at] = dice.randrange(256)
            elif kind == 1:
                del bad[at : at + dice.randrange(1, 9)]
            else:
                bad[at:at] = bad[at : at + dice.randrange(1, 30)]
            if not bad:
                break
        # Keys of the witness cannot be hit by accident: they are longer than any mutation here reaches.
        with socket.create_connection(("127.0.0.1", node.port), timeout=5) as link:
            link.sendall(bytes(bad))
            link.settimeout(0.01)
            try:
                link.recv(65536)
            except OSError:
                pass
    witness.still()
    return f"{rounds} broken pipelines, seed {world.seed}"


def every_command(world, sandbox):
    """Every command the node lists, with every number of words of every kind. An answer each time, and no panic."""
    node = sandbox.wait_primary()
    witness = Witness(node, "every")
    dice = random.Random(world.seed)
    kinds = ["", "0", "1", "-1", "9223372036854775807", "-9223372036854775809", "1e400", "nan", "every:junk", "*", "[", "GET", "EX",
             "PX", "MATCH", "COUNT", "LIST", "INFO", "REPLY", "\r\n", b"\0\xff", "x" * 5000, "(", "STATS", "DOCS", "GETKEYS", "KILL", "ID"]
    with node.client() as client:
        names = [name.decode() for name in client.do("COMMAND", "LIST") if b"|" not in name]
    # These end the connection, the data or the wait by design; they are tried without words only.
    ending = {"quit", "flushall", "flushdb", "shutdown", "monitor", "wait", "waitaof", "baton.waitlsn", "reset", "client", "debug"}
    asked = 0
    for target in sandbox.nodes[:2] if node is sandbox.nodes[0] else [node, sandbox.nodes[0]]:
        for name in names:
            for queued in (False, True):
                with target.client(timeout=10) as client:
                    tries = [()] if name in ending - {"client"} else [
                        tuple(dice.choice(kinds) for _ in range(count))
                        # FAILOVER alone is no mischief: it hands over.
                        for count in range(1 if name == "failover" else 0, 7)
                        for _ in range(6 if world.long else 2)
                    ]
                    for words in tries:
                        if any("witness" in str(word) for word in words) or (name == "client" and "KILL" in words):
                            continue
                        try:
                            if queued:
                                client.do("MULTI")
                            client.send(encode(name, *words))
                            # A client that switched its replies off gets none: PING ends the wait in any case.
                            client.socket.settimeout(0.3 if name == "client" else 10)
                            client.read()
                            if queued:
                                client.do("EXEC")
                            asked += 1
                        except (Gone, Broken):
                            client.close()
                            client.__init__(target.port, timeout=10)
                want(target.alive(), f"{name} ends node {target.id}: {target.log()[-300:]}")
    want(node.pid() == witness.pid, "the primary is another process")
    return f"{asked} questions with {len(names)} commands"


def half_requests(world, sandbox):
    """Half a request and then silence: the connection stays, the rest may come much later, others are served."""
    node = sandbox.wait_primary()
    witness = Witness(node, "half")
    halves = []
    whole = encode("SET", "half:late", "v" * 1000)
    for cut in range(1, 200):
        link = socket.create_connection(("127.0.0.1", node.port), timeout=5)
        link.sendall(whole[: cut * 5])
        halves.append((link, whole[cut * 5 :]))
    # A large value of which only the head ever comes may not reserve its size 100 times.
    greedy = []
    for _ in range(100):
        link = socket.create_connection(("127.0.0.1", node.port), timeout=5)
        link.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$8000000\r\n" + b"y" * 1000)
        greedy.append(link)
    time.sleep(0.5)
    witness.still()
    resident = memory(node.pid())
    want(resident < 450, f"{resident:.0f} MiB are resident: declared sizes were believed")
    for link, rest in halves:
        link.sendall(rest)
    for link, _ in halves:
        answer = link.recv(100)
        want(answer == b"+OK\r\n", f"a late half is answered with {answer!r}")
        link.close()
    for link in greedy:
        link.close()
    witness.still()
    return f"199 halves finished, 100 greedy heads, {resident:.0f} MiB resident"


def memory(pid):
    """Resident MiB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    raise Broken("the process is gone")


def slow_reader(world, sandbox):
    """A client that asks for a lot and reads nothing holds no more than its share."""
    node = sandbox.wait_primary()
    witness = Witness(node, "slow")
    with node.client() as client:
        want(client.do("SET", "slow:big", b"z" * 1_000_000) == b"OK", "SET")
    links = []
    for _ in range(8):
        link = socket.create_connection(("127.0.0.1", node.port), timeout=5)
        link.settimeout(0.2)
        try:
            link.sendall(encode("GET", "slow:big") * 2000)
        except OSError:
            pass
        links.append(link)
    time.sleep(1)
    witness.still()
    resident = memory(node.pid())
    for link in links:
        link.close()
    want(resident < 450, f"{resident:.0f} MiB for 8 clients that do not read")
    return f"16000 MB asked for, {resident:.0f} MiB resident"


# ---- the peer port ----


def peer_garbage(world, sandbox):
    node = sandbox.wait_primary()
    witness = Witness(node, "peer")
    dice = random.Random(world.seed)
    head = b"BTNP" + (1).to_bytes(2, "little")
    packets = [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\0" * 5000,
        dice.randbytes(100_000),
        head + bytes([1, 0]) + (0xFFFFFFFF).to_bytes(4, "little") + b"\0" * 60,
        head + bytes([19, 0]) + (16 << 20).to_bytes(4, "little") + b"\0" * 60,
        head + bytes([200, 0]) + b"\0" * 64,
        b"BTNP" + (99).to_bytes(2, "little") + bytes([1, 0]) + (72).to_bytes(4, "little") + b"\0" * 132,
        head + bytes([1, 0]) + (72).to_bytes(4, "little") + dice.randbytes(60 + 72),
        encode("SET", "a", "b"),
        b"BTNP",
    ]
    for target in sandbox.nodes:
        for packet in packets:
            got, _ = shout(target.peer_port, packet)
            want(len(got) < 1000, f"garbage on the peer port is answered with {len(got)} bytes")
        # More half-open strangers than the node keeps.
        strangers = [socket.create_connection(("127.0.0.1", target.peer_port), timeout=3) for _ in range(150)]
        for stranger in strangers[::2]:
            stranger.send(b"BT")
        for stranger in strangers:
            stranger.close()
    witness.still()
    sandbox.wait_caught_up(next(other for other in sandbox.nodes if other is not node))
    want("peer link broke the protocol" in node.log(), "the log says nothing about the garbage")
    want("version" in after(node.log(), "peer link broke the protocol"), "the log says nothing about the other version")
    declared_lengths(sandbox)
    # With strangers sitting there, a standby still gets in.
    strangers = [socket.create_connection(("127.0.0.1", node.peer_port), timeout=3) for _ in range(200)]
    standby = next(other for other in sandbox.nodes if other is not node)
    standby.kill()
    standby.launch()
    sandbox.wait_standby(standby, 30)
    for stranger in strangers:
        stranger.close()
    witness.still()
    return f"{len(packets)} kinds on every node, 150 half-open strangers, a standby comes back among 200"


def declared_lengths(sandbox):
    """Strangers who announce the largest messages there are, and send a little: nothing is reserved for them."""
    for target in sandbox.nodes:
        before, strangers = memory(target.pid()), []
        for kind in (1, 2, 3, 5, 16, 19, 49, 64, 81) * 6:
            for length in (4096, 1 << 20, 16 << 20, 0x7FFFFFFF):
                head = b"BTNP" + (1).to_bytes(2, "little") + bytes([kind, 0]) + length.to_bytes(4, "little") + b"\0" * 60
                try:
                    stranger = socket.create_connection(("127.0.0.1", target.peer_port), timeout=3)
                    stranger.sendall(head + b"\0" * 1000)
                    strangers.append(stranger)
                except OSError:
                    pass
        grown = memory(target.pid()) - before
        for stranger in strangers:
            stranger.close()
        want(grown < 64, f"node {target.id} grew by {grown:.0f} MiB for {len(strangers)} strangers' announcements")


class Recorder:
    """A relay that keeps what one side said."""

    def __init__(self, port):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.target, self.said = self.listener.getsockname()[1], port, b""

    def pass_one(self, seconds):
        import select

        self.listener.settimeout(seconds)
        near, _ = self.listener.accept()
        far = socket.create_connection(("127.0.0.1", self.target), timeout=3)
        end = time.monotonic() + seconds
        with near, far:
            while time.monotonic() < end:
                ready, _, _ = select.select([near, far], [], [], 0.1)
                for link in ready:
                    data = link.recv(65536)
                    if not data:
                        return
                    if link is near:
                        self.said += data
                        far.sendall(data)
                    else:
                        near.sendall(data)


def replayed_link(world):
    """What a standby once said to the primary, said again by a stranger, opens nothing."""
    with Sandbox(world, "replay", 2) as sandbox:
        primary, standby = sandbox.node(1), sandbox.node(2)
        witness = Witness(primary, "replay")
        recorder = Recorder(primary.peer_port)
        standby.kill()
        config = standby.path("baton.toml")
        with open(config, encoding="utf-8") as file:
            text = file.read()
        moved = text.replace(f'peer = "127.0.0.1:{primary.peer_port}"', f'peer = "127.0.0.1:{recorder.port}"')
        want(moved != text, "the configuration does not name the primary's peer port")
        with open(config, "w", encoding="utf-8") as file:
            file.write(moved)
        standby.launch()
        recorder.pass_one(3)
        want(len(recorder.said) > 300, f"only {len(recorder.said)} bytes were recorded")
        standby.kill()
        row = primary.status()
        for _ in range(3):
            shout(primary.peer_port, recorder.said)
            shout(primary.peer_port, recorder.said[: len(recorder.said) // 2])
        want(primary.status()["committed_lsn"] >= row["committed_lsn"], "the primary lost its place")
        want("handshake failed" in primary.log() or "broke the protocol" in primary.log(), "the log says nothing")
        with primary.client() as client:
            client.send(encode("SET", "replayed", "1"))
            client.socket.settimeout(1.0)
            try:
                answer = client.read()
            except Gone:
                answer = None
            want(answer != b"OK", "a replayed standby counted for a commit")
        with open(config, "w", encoding="utf-8") as file:
            file.write(text)
        standby.launch()
        sandbox.wait_standby(standby)
        witness.still()
        return f"{len(recorder.said)} bytes replayed"


def strangers(world):
    """A node of another cluster, and one with a wrong secret, dial ours. Our log says who."""
    with Sandbox(world, "ours", 2) as ours:
        witness = Witness(ours.node(1), "ours")
        theirs = Sandbox(world, "theirs", 2, base=world.next_base())
        with theirs:
            stranger = theirs.node(2)
            stranger.kill()
            config = stranger.path("baton.toml")
            with open(config, encoding="utf-8") as file:
                text = file.read()
            # Node 2 of the other cluster takes node 1 of ours for its primary: other secret, other cluster.
            moved = text.replace(f'peer = "127.0.0.1:{theirs.node(1).peer_port}"', f'peer = "127.0.0.1:{ours.node(1).peer_port}"')
            write(config, moved)
            stranger.launch()
            wait_for(lambda: "handshake failed" in stranger.log(), 10, "the stranger's log says nothing")
            wait_for(lambda: "handshake failed" in ours.node(1).log(), 10, "our log says nothing about the stranger")
            stranger.kill()
            # With our secret it is still of another cluster.
            secret = line_of(ours.node(1).path("baton.toml"), "peer_secret")
            write(config, moved.replace(line_of(config, "peer_secret"), secret))
            stranger.launch()
            wait_for(lambda: "cluster" in after(ours.node(1).log(), "handshake failed"), 10, "no word about the cluster")
            want(stranger.role()[0] != "Primary", "the stranger leads")
            stranger.kill()
        witness.still()
        with ours.node(1).client() as client:
            want(client.do("SET", "x", "1") == b"OK", "writes do not go on")
        # A node of our own with a wrong secret: told in both logs, and a standby again with the right one.
        own = ours.node(2)
        own.kill()
        config = own.path("baton.toml")
        with open(config, encoding="utf-8") as file:
            text = file.read()
        write(config, text.replace(line_of(config, "peer_secret"), 'peer_secret = "quite another secret"'))
        own.launch()
        wait_for(lambda: "secret" in own.log() + ours.node(1).log(), 10, "no log mentions the secret")
        own.kill()
        write(config, text)
        own.launch()
        ours.wait_standby(own)
        witness.still()


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def line_of(path, key):
    with open(path, encoding="utf-8") as file:
        return next(line.strip() for line in file if line.startswith(key))


def after(text, mark):
    at = text.find(mark)
    return text[at:] if at >= 0 else ""


# ---- roles, numbers, the admin socket ----


def wrong_role(world, sandbox):
    primary = sandbox.wait_primary()
    standby = next(node for node in sandbox.nodes if node is not primary)
    witness = Witness(primary, "role")
    with standby.client() as client:
        for command in (("SET", "a", "1"), ("DEL", "a"), ("INCR", "a"), ("FLUSHALL",), ("MSET", "a", "1")):
            reply = client.do(*command)
            want(isinstance(reply, Error) and reply.word == "READONLY", f"{command} on a standby: {reply}")
        client.do("MULTI")
        client.do("SET", "a", "1")
        reply = client.do("EXEC")
        want(isinstance(reply, Error), f"a writing transaction on a standby: {reply}")
    done = primary.run("failover")
    want(primary.role() == ("Primary", "Normal"), f"failover on the primary: {done.stdout} {done.stderr}")
    done = standby.run("failover", "--timeout", "3s")
    want(done.returncode == 4, f"failover under a living primary: exit {done.returncode} {done.stdout[:200]} {done.stderr[:200]}")
    done = standby.run("failover", "--expect-term", 999)
    want(done.returncode == 4, f"a wrong --expect-term: exit {done.returncode}")
    done = standby.run("failover", "--dry-run")
    want(sandbox.primary() is primary, "a dry run changed the primary")
    witness.still()


def admin_socket(world, sandbox):
    primary = sandbox.wait_primary()
    witness = Witness(primary, "admin")

    def say(data):
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(3)
            link.connect(primary.path("admin.sock"))
            try:
                link.sendall(data)
            except OSError:
                pass
            got = b""
            try:
                while b"\n" not in got:
                    piece = link.recv(65536)
                    if not piece:
                        break
                    got += piece
            except OSError:
                pass
            return got

    for data in (b"{\n", b"null\n", b"[]\n", b'{"op":"x"}\n', b'{"op":"x","verb":"explode"}\n', b"\xff\xfe\n",
                 b'{"op":"' + b"x" * 100 + b'","verb":"ping"}\n', b'{"v":99,"op":"x","verb":"ping"}\n',
                 b'{"op":1,"verb":"ping"}\n',
                 b"[" * 100_000 + b"\n"):
        got = say(data)
        want(b'"ok":false' in got, f"{data[:60]!r} is answered with {got[:200]!r}")
    got = say(b'{"op":"' + b"x" * (2 << 20))
    want(b'"ok":false' in got or got == b"", f"an endless line is answered with {got[:200]!r}")
    links = []
    for _ in range(100):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(3)
        try:
            link.connect(primary.path("admin.sock"))
            link.sendall(b"{")
        except OSError:
            pass
        links.append(link)
    time.sleep(0.2)
    for link in links:
        link.close()
    wait_for(primary.status, 5, "the admin socket does not answer after 100 half requests")
    for request in (b"GET /\r\n\r\n", b"A" * 20_000, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n", b"\0" * 100):
        shout(primary.http_port, request)
    got, _ = shout(primary.http_port, b"GET /metrics HTTP/1.0\r\n\r\n")
    want(b"200" in got[:40] and b"baton_" in got, f"/metrics after bad requests: {got[:200]!r}")
    witness.still()


def too_many_clients(world):
    sandbox = Sandbox(world, "crowd", 1)
    with sandbox:
        node = sandbox.node(1)
        witness = Witness(node, "crowd")
        node.run("stop", ok=0)
        config = node.path("baton.toml")
        with open(config, encoding="utf-8") as file:
            text = file.read()
        write(config, "max_clients = 20\n" + text)
        node.start("-M", "primary")
        sandbox.wait_primary()
        crowd = [node.client() for _ in range(20)]
        for client in crowd:
            want(client.do("PING") == b"PONG", "a client within the limit is not served")
        for _ in range(30):
            with node.client(timeout=3) as one_more:
                try:
                    answer = one_more.read()
                except Gone as gone:
                    raise Broken(f"one client too many is cut off without a word: {gone}") from gone
                want(isinstance(answer, Error) and "max number of clients" in answer, f"one client too many: {answer}")
        crowd.pop().close()

        def again():
            try:
                with node.client(timeout=3) as client:
                    return client.do("PING") == b"PONG"
            except (Gone, OSError):
                return False

        wait_for(again, 3, "a place that became free is not given away")
        for client in crowd:
            client.close()
        wait_for(again, 3, "nobody gets in after the crowd has left")
        witness.still(same_process=False)


def mixed(report, world):
    """Mischief against one cluster that lives through all of it."""
    names = [
        ("bad requests", bad_requests),
        ("random bytes", random_bytes),
        ("every command with odd words", every_command),
        ("half requests and silence", half_requests),
        ("clients that do not read", slow_reader),
        ("garbage on the peer port", peer_garbage),
        ("commands for another role", wrong_role),
        ("admin socket and HTTP port", admin_socket),
    ]
    if report.only and not any(report.only in name for name, _ in names):
        return
    sandbox = Sandbox(world, "mischief", 3)
    try:
        sandbox.up()
        for name, function in names:
            report.check(name, function, world, sandbox)
            if sandbox.primary() is None:
                break
    finally:
        sandbox.down()
    report.check("no panic in any log of the mischief", lambda: want(not sandbox.panics(), sandbox.panics()))


def checks(report, world):
    mixed(report, world)
    report.check("a recorded link, replayed", replayed_link, world)
    report.check("nodes of another cluster, a wrong secret", strangers, world)
    report.check("more clients than max_clients", too_many_clients, world)
