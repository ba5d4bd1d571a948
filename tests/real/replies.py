"""The same bytes to baton and to a redis-server, and the same bytes back, but for the list of intended differences."""

import random
import re
import select
import shutil

from compare import Link, Reference, converse, trees
from harness import Broken, Sandbox, encode, tool, wait_for, want
from spoken import AWAITED, ENDLESS, LATER, MUTED, PING, QUIT, SPOKEN, STRANGER, UNSPOKEN
from streams import Stream

# ---- what may differ ----


def upper(words, at):
    word = words[at] if len(words) > at else b""
    return (word.encode() if isinstance(word, str) else word).upper()


def both_blobs(a, b):
    return a[0] == b[0] and a[0] in (b"$", b"=") and a[1] is not None and b[1] is not None


def both_numbers(a, b):
    return a[0] == b[0] == b":"


def close_seconds(a, b, distance=60):
    return both_numbers(a, b) and abs(int(a[1]) - int(b[1])) <= distance and min(int(a[1]), int(b[1])) > 0


def close_milliseconds(a, b):
    return close_seconds(a, b, 60_000)


def same_members(a, b):
    return a[0] == b[0] and a[0] in (b"*", b"~") and sorted(a[1]) == sorted(b[1])


def same_pairs(a, b):
    def pairs(reply):
        return sorted(zip(reply[1][::2], reply[1][1::2]))

    return a[0] == b[0] and a[0] in (b"*", b"%") and pairs(a) == pairs(b)


def whole_scan(a, b):
    """One call over all keys: the order is the server's."""
    return a[0] == b[0] == b"*" and len(a[1]) == len(b[1]) == 2 and a[1][0] == b[1][0] == (b"$", b"0") and same_members(a[1][1], b[1][1])


def same_shape(a, b):
    if a[0] != b[0]:
        return False
    if isinstance(a[1], list):
        return b[1] is not None and len(a[1]) == len(b[1]) and all(same_shape(x, y) for x, y in zip(a[1], b[1]))
    return (a[1] is None) == (b[1] is None)


def hello_but_id(a, b):
    def without(reply):
        fields = dict(zip([name for _, name in reply[1][::2]], reply[1][1::2]))
        want(int(fields[b"id"][1]) > 0, f"HELLO: {reply}")
        del fields[b"id"]
        return fields

    return a[0] == b[0] and a[0] in (b"*", b"%") and without(a) == without(b)


def strange_cursor(words):
    """One that nobody gave out."""
    return upper(words, 1).strip(b"+-0") != b""


def both_lists(a, b):
    return a[0] == b[0] and a[0] in (b"*", b"%", b"~")


def cluster_mode(a, b):
    """READONLY and READWRITE are errors of a Redis that is no cluster, and fine here."""
    return a == (b"-", b"ERR This instance has cluster support disabled") and b == (b"+", b"OK")


def nearly(a, b):
    """Sums of fractions: those of Redis end with the rest of its 80 bits, ours are exact."""
    if not both_blobs(a, b):
        return False
    theirs, ours = float(a[1]), float(b[1])
    return abs(theirs - ours) <= 1e-12 * abs(ours)


def asks(name, *subcommands):
    """Says of a command whether it is this one."""
    return lambda words: upper(words, 0) in name.split() and (not subcommands or upper(words, 1) in subcommands)


# Why two replies may differ, to which commands, and what they must have in common still. docs/redis.md says it to users.
RULES = [
    ("the two were asked at different moments", asks(b"TTL EXPIRETIME"), close_seconds),
    ("the two were asked at different moments", asks(b"PTTL PEXPIRETIME"), close_milliseconds),
    ("the clock; offsets are of different logs", asks(b"TIME LASTSAVE ROLE"), same_shape),
    ("what has expired counts until it is collected, and that is a matter of time", asks(b"DBSIZE"), both_numbers),
    ("keys come in the order of a hash table, or in their own", asks(b"KEYS"), same_members),
    ("keys come in the order of a hash table, or in their own", lambda w: asks(b"SCAN")(w) and not strange_cursor(w), whole_scan),
    ("a cursor that nobody gave out leads anywhere", lambda w: asks(b"SCAN")(w) and strange_cursor(w), both_lists),
    ("Redis adds in 80-bit floating point, baton exactly", asks(b"INCRBYFLOAT"), nearly),
    ("the same, read again", asks(b"GET", b"F1", b"F2"), nearly),
    ("READONLY is accepted outside of a cluster", asks(b"READONLY READWRITE"), cluster_mode),
    ("connections are numbered by each server", asks(b"HELLO"), hello_but_id),
    ("connections are numbered by each server", asks(b"CLIENT", b"ID"), both_numbers),
    ("memory, descriptors and ages are each server's own", asks(b"CLIENT", b"INFO", b"LIST"), both_blobs),
    ("each server speaks of itself", asks(b"INFO"), both_blobs),
    ("each knows commands that the other lacks", asks(b"COMMAND", b"COUNT"), both_numbers),
    ("each knows commands that the other lacks", asks(b"COMMAND", b"", b"DOCS", b"LIST", b"INFO"), both_lists),
    ("the help is shorter", asks(b"COMMAND CLIENT CONFIG", b"HELP"), both_lists),
    ("few of the parameters of Redis mean something here", lambda w: asks(b"CONFIG", b"GET")(w) and b"*" in b"".join(w), both_lists),
]


def agree(words, reference, ours, queued=()):
    """Whether two reply trees say the same to a command; `queued` are the commands of an EXEC."""
    if reference == ours:
        return True
    if upper(words, 0) == b"EXEC" and reference[0] == ours[0] == b"*" and reference[1] and ours[1]:
        return len(reference[1]) == len(ours[1]) == len(queued) and all(map(agree, queued, reference[1], ours[1]))
    return any(concerns(words) and allowed(reference, ours) for _, concerns, allowed in RULES)


def nested(words, reply):
    """What leaves the queue of a transaction as it is: an error between MULTI and EXEC."""
    return reply[0] == b"-" and upper(words, 0) not in (b"EXEC", b"DISCARD")


def differences(requests, reference, ours):
    """Compares two conversations; gives the first difference as (number, words, reply, reply)."""
    theirs, rest_a = trees(reference)
    mine, rest_b = trees(ours)
    queued = []
    for number, words in enumerate(requests):
        a = theirs[number] if number < len(theirs) else (None, b"")
        b = mine[number] if number < len(mine) else (None, b"")
        if a[0] is None or b[0] is None or not agree(words, a[0], b[0], queued):
            return number, words, a[1], b[1]
        if a[0] == (b"+", b"QUEUED"):
            queued.append(words)
        elif not nested(words, a[0]):
            queued = []
    rest_a = b"".join(raw for _, raw in theirs[len(requests) :]) + rest_a
    rest_b = b"".join(raw for _, raw in mine[len(requests) :]) + rest_b
    return None if rest_a == rest_b else (len(requests), [b"(the rest)"], rest_a, rest_b)


# ---- random streams ----


def stream(dice, length, pair=False):
    """Words and bytes of one conversation; it ends by QUIT."""
    source = Stream(dice)
    requests = [[b"FLUSHALL"]] + ([[b"HELLO", b"3"]] if dice.random() < 0.5 else [])
    requests += [source.command() for _ in range(length)] + [[b"QUIT"]]
    if pair:
        # How many have a write, and who follows, is the difference between one server and two.
        requests = [words for words in requests if upper(words, 0) not in (b"WAIT", b"ROLE")]
    return requests, [source.written(words) for words in requests]


def pieces_of(dice, written):
    """The same bytes, cut anywhere or sent at once."""
    whole = b"".join(written)
    if dice.random() < 0.5:
        return [whole]
    cuts = sorted({dice.randrange(1, len(whole)) for _ in range(dice.randint(1, 12))})
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)])]


def random_streams(world, reference, node, count, length, pair=False):
    commands = 0
    for seed in range(world.seed, world.seed + count):
        dice = random.Random(seed)
        requests, written = stream(dice, length, pair)
        pieces = pieces_of(dice, written)
        found = differences(requests, converse(reference.port, pieces), converse(node.port, pieces))
        if found:
            raise Broken(told(seed, requests, *found))
        commands += len(requests)
    return f"{count} conversations of {commands} commands from seed {world.seed} on"


def can_fail():
    """The comparison sees what it must see."""
    requests = [[b"MULTI"], [b"TTL", b"k"], [b"GET", b"k"], [b"EXEC"], [b"QUIT"]]
    said = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1000\r\n$1\r\na\r\n+OK\r\n"
    want(differences(requests, said, said.replace(b":1000", b":999")) is None, "a second more to live is taken for a difference")
    for old, new in [
        (b"$1\r\na", b"$1\r\nb"),
        (b":1000", b":-1"),
        (b":1000", b":5000"),
        (b"+QUEUED", b"+OK"),
        (b"$1\r\na", b"$-1"),
        (b"a\r\n+OK", b"a\r\n+ok"),
    ]:
        want(differences(requests, said, said.replace(old, new, 1)), f"{new} instead of {old} is not seen")
    want(
        differences(requests, said, said[:-5]) and differences(requests, said, said + b"+OK\r\n"), "a reply too few or too many is not seen"
    )


def told(seed, requests, number, words, theirs, ours):
    before = [b" ".join(word[:40] for word in request) for request in requests[max(0, number - 4) : number]]
    return f"seed {seed}, command {number}: {[word[:80] for word in words]}: redis-server says {theirs[:300]!r}, baton {ours[:300]!r}; before it: {before}"


def crossed_streams(world, reference, node, count, length):
    """Three connections by turns, one reply at a time: what one changes breaks the other's WATCH."""
    steps = 0
    for seed in range(world.seed, world.seed + count):
        dice = random.Random(seed)
        source = Stream(dice)
        make = [
            source.transaction,
            source.watch,
            source.watch,
            source.set,
            source.one_key,
            source.many_keys,
            source.by_integer,
            source.pairs,
            source.expire,
            source.rename,
        ]
        links = [(Link(reference.port), Link(node.port)) for _ in range(3)]
        queued, history = [[], [], []], []
        for theirs, ours in links[:1]:
            theirs.do("FLUSHALL"), ours.do("FLUSHALL")
        for _ in range(length):
            who = dice.randrange(3)
            words = dice.choice(make)() if dice.random() < 0.97 else [b"FLUSHALL"]
            history.append([b"%d>" % who, *words])
            (a, raw_a), (b, raw_b) = (link.do(*words) for link in links[who])
            if not agree(words, a, b, queued[who]):
                raise Broken(told(seed, history, len(history) - 1, words, raw_a, raw_b))
            if a == (b"+", b"QUEUED"):
                queued[who].append(words)
            elif not nested(words, a):
                queued[who] = []
            steps += 1
        for pair in links:
            for link in pair:
                link.socket.close()
    return f"{steps} commands by turns from seed {world.seed} on"


def broken_streams(world, reference, node, count):
    """Bytes changed, lost and doubled. Where baton differs, it has refused what Redis guesses at, and said so."""
    refused = 0
    for seed in range(world.seed, world.seed + count):
        dice = random.Random(seed)
        requests = [
            [
                dice.choice([b"GET", b"SET", b"ECHO", b"INCR", b"DEL", b"MGET"]),
                *(dice.choice([b"a", b"bb", b"10"]) for _ in range(dice.randrange(4))),
            ]
            for _ in range(dice.randint(1, 6))
        ]
        data = bytearray(b"".join(encode(*words) if dice.random() < 0.8 else b" ".join(words) + b"\r\n" for words in requests))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data))
            kind = dice.randrange(4)
            if kind == 0:
                data[at] = dice.randrange(1, 128)
            elif kind == 1:
                data[at] = dice.choice(b"*$\r\n-0123456789 '\"")
            elif kind == 2 and len(data) > 8:
                del data[at : at + dice.randint(1, 4)]
            else:
                data[at:at] = data[at : at + dice.randint(1, 12)]
        data = bytes(data)
        for server in (reference, node):
            with Link(server.port) as link:
                link.do("FLUSHALL")
        strict = patiently(reference, node, data, refuses_more)
        want(strict is not None, f"seed {seed}: {data!r}: redis-server says {shout(reference.port, data)}, baton {shout(node.port, data)}")
        refused += strict
    return f"{count} broken pipelines from seed {world.seed} on, {refused} of them refused by baton alone"


# ---- requests that are none, and their ends ----


def refuses_more(theirs, ours):
    """Says how the two ends compare: 0 for the same, 1 when baton refused what Redis went on with, None for another difference."""
    if theirs == ours:
        return 0
    (theirs, _), (ours, ended) = theirs, ours
    last = ours.rfind(b"-ERR Protocol error: ")
    return 1 if last >= 0 and ended and theirs.startswith(ours[:last]) else None


def patiently(reference, node, data, judge):
    """Shouts at both. A silence may be a slow disk: what looks wrong is tried again with more patience."""
    for patience in (0.1, 1.0, 5.0):
        verdict = judge(shout(reference.port, data, patience), shout(node.port, data, patience))
        if verdict is not None:
            return verdict
    return None


def shout(port, data, patience=0.1):
    """What comes back before the end, or before a silence; and whether it ended."""
    with Link(port, timeout=5) as link:
        try:
            link.send(data)
        except OSError:
            pass
        link.socket.settimeout(patience)
        while True:
            try:
                got = link.socket.recv(1 << 18)
            except TimeoutError:
                return link.data, False
            except OSError:
                got = b""
            if not got:
                return link.data, True
            link.data += got


def anonymous(replies):
    """Without the connection's number that HELLO tells."""
    return re.sub(rb"\$2\r\nid\r\n:\d+\r\n", b"", replies)


def quoted_lines(world, reference, node, count):
    """Inline requests of quotes, escapes and blanks in any order; COMMAND GETKEYS tells how their words were read."""
    parts = [
        b'"',
        b"'",
        b"\\",
        b" ",
        b"\t",
        b"x",
        b"\\x4",
        b"\\x41",
        b"\\n",
        b'\\"',
        b"\\'",
        b"ab",
        b"\r",
        b"\x0b",
        b"\x0c",
        b"\xff",
        b"\x01",
        b"\\xZZ",
        b'""',
        b"''",
    ]
    dice = random.Random(world.seed)
    for _ in range(count):
        words = b"".join(dice.choice(parts) for _ in range(dice.randint(1, 8)))
        data = b"COMMAND GETKEYS DEL " + words + dice.choice([b"\r\n", b"\n"]) + QUIT
        theirs, ours = converse(reference.port, [data]), converse(node.port, [data])
        want(theirs == ours, f"seed {world.seed}: {data!r}: redis-server says {theirs!r}, baton {ours!r}")
    return f"{count} lines from seed {world.seed}"


def patterns(world, reference, node, count):
    """What MATCH takes, for patterns made of everything that means something."""
    names = [b"a", b"b", b"ab", b"abc", b"a-c", b"]", b"[", b"^", b"\\", b"a*", b"?", b"AB", b"\xff", b"", b"a]b", b"-", b"a^b", b"\\a"]
    parts = [b"a", b"b", b"c", b"*", b"?", b"[", b"]", b"^", b"-", b"\\", b"[a-c]", b"[^a]", b"A", b"[]", b"[^]", b"[\\]]"]
    dice = random.Random(world.seed)
    with Link(reference.port) as theirs, Link(node.port) as ours:
        for link in (theirs, ours):
            link.do("FLUSHALL")
            link.do("MSET", *[word for name in names for word in (name, b"v")])
        for _ in range(count):
            pattern = b"".join(dice.choice(parts) for _ in range(dice.randint(0, 5)))
            words = dice.choice([["SCAN", "0", "COUNT", "1000", "MATCH", pattern], ["KEYS", pattern]])
            (a, raw_a), (b, raw_b) = theirs.do(*words), ours.do(*words)
            want(agree(words, a, b), f"seed {world.seed}: {words}: redis-server says {raw_a!r}, baton {raw_b!r}")
    return f"{count} patterns from seed {world.seed}"


def spoken(world, reference, node):
    cases = [data + PING + QUIT for data in SPOKEN]
    cases += [b"CLIENT REPLY OFF\r\n" + data + b"CLIENT REPLY ON\r\n" + PING + QUIT for data in MUTED]
    for data in cases:
        theirs, ours = converse(reference.port, [data]), converse(node.port, [data])
        want(anonymous(theirs) == anonymous(ours), f"{data[:120]!r}: redis-server says {theirs[:300]!r}, baton {ours[:300]!r}")
        # The same, one byte at a time where that is not too long.
        if len(data) < 120:
            bytewise = converse(node.port, [data[at : at + 1] for at in range(len(data))])
            want(anonymous(bytewise) == anonymous(ours), f"{data[:120]!r}: byte by byte {bytewise[:300]!r}, at once {ours[:300]!r}")
    for data in UNSPOKEN:
        want(converse(node.port, [data]) == b"", f"{data!r} is answered: {converse(node.port, [data])}")
    for data in ENDLESS:
        same = patiently(reference, node, data, lambda theirs, ours: True if theirs == ours and ours[1] else None)
        want(same, f"{data[:20]!r}...: redis-server says {shout(reference.port, data)}, baton {shout(node.port, data)}")
    links = {}
    for data in AWAITED:
        for server in (reference, node):
            link = Link(server.port)
            link.send(data)
            links[link.socket] = (link, data)
    answered, _, _ = select.select(list(links), [], [], 0.5)
    said = [(links[one][1], one.recv(1000)) for one in answered]
    for link, _ in links.values():
        link.socket.close()
    want(not said, f"answered before they are whole: {said}")
    return f"{len(cases)} inputs to the end, {len(AWAITED)} that wait"


def strangers(world):
    with (
        Reference(world, "--requirepass", "secret") as reference,
        Sandbox(world, "strangers", 1, config={"client_password": '"secret"'}) as sandbox,
    ):
        node = sandbox.wait_primary()
        for data in STRANGER:
            theirs, ours = (converse(server.port, [data + PING + QUIT]) for server in (reference, node))
            want(anonymous(theirs) == anonymous(ours), f"{data[:120]!r}: redis-server says {theirs[:300]!r}, baton {ours[:300]!r}")
    return f"{len(STRANGER)} inputs"


# ---- several connections ----


def everyday(reference, node):
    """Stories with a known end, told to both."""

    def both(words, links):
        (a, raw_a), (b, raw_b) = (link.do(*words) for link in links)
        want(agree(words, a, b), f"{words}: redis-server says {raw_a!r}, baton {raw_b!r}")
        return b

    def open_links():
        return [Link(reference.port), Link(node.port)]

    me, other = open_links(), open_links()
    both(["FLUSHALL"], me)
    # WATCH: own writes count, an expiry counts, a key that was never there does not become another by being deleted.
    for change in (
        ["SET", "w", "2"],
        ["DEL", "w"],
        ["PEXPIREAT", "w", "1"],
        ["APPEND", "w", "x"],
        ["EXPIRE", "w", "1000"],
        ["PERSIST", "w"],
        ["DEL", "none"],
        ["GET", "w"],
        ["SET", "w", "1"],
        ["RENAME", "w", "v"],
        ["FLUSHALL"],
        ["FLUSHDB"],
    ):
        for who in (me, other):
            for proto in ("2", "3"):
                both(["HELLO", proto], me)
                both(["SET", "w", "1"], me)
                both(["WATCH", "w", "none"], me)
                both(change, who)
                both(["MULTI"], me)
                both(["SET", "x", "y"], me)
                both(["EXEC"], me)
                both(["DEL", "x", "w", "v"], me)
    both(["HELLO", "2"], me)
    # A watched key whose time runs out: the transaction ends; one that was gone before does no harm.
    for link, second in zip(me, other):
        while True:
            link.do("SET", "w", "1", "PX", "400")
            link.do("WATCH", "w")
            if int(link.do("PTTL", "w")[0][1]) > 0:
                break
            link.do("UNWATCH")
        wait_for(lambda: second.do("GET", "w")[1] in (b"$-1\r\n", b"_\r\n"), 20, "a key outlives its time")
        for wanted in (None, [(b"+", b"OK")]):
            link.do("MULTI")
            link.do("SET", "x", "y")
            answer = link.do("EXEC")[0]
            want(answer[1] == wanted or wanted is None and answer[0] == b"_", f"EXEC with an expired key: {answer}, not {wanted}")
            link.do("WATCH", "w")
    both(["UNWATCH"], me)
    # UNWATCH, DISCARD, EXEC and RESET let go.
    for release in (["UNWATCH"], ["RESET"], ["MULTI", "DISCARD"], ["MULTI", "EXEC"]):
        both(["WATCH", "w"], me)
        for word in release:
            both([word], me)
        both(["SET", "w", "changed"], other)
        both(["MULTI"], me)
        both(["GET", "w"], me)
        both(["EXEC"], me)
    # CLIENT KILL in both forms, and who is left.
    for form in ("ID", "ADDR", "old", "LADDR", "ME"):
        victims, rest = open_links(), open_links()
        for which, (victim, killer) in enumerate(zip(victims, rest)):
            number = victim.do("CLIENT", "ID")[0][1]
            address = "%s:%d" % victim.socket.getsockname()
            words = {
                "ID": ["CLIENT", "KILL", "ID", number, "TYPE", "normal", "SKIPME", "yes"],
                "ADDR": ["CLIENT", "KILL", "ADDR", address, "USER", "default"],
                "LADDR": ["CLIENT", "KILL", "LADDR", "1.2.3.4:5", "ID", number],
                "old": ["CLIENT", "KILL", address],
                "ME": ["CLIENT", "KILL", "SKIPME", "no", "ADDR", "%s:%d" % killer.socket.getsockname()],
            }[form]
            answer = killer.do(*words)[0]
            want(
                answer == {"old": (b"+", b"OK"), "LADDR": (b":", b"0")}.get(form, (b":", b"1")),
                f"CLIENT KILL {form} on {'redis-server' if which == 0 else 'baton'}: {answer}",
            )
            gone = killer if form == "ME" else victim
            want(
                (gone.do("PING") if form == "LADDR" else gone.reply()) == (((b"+", b"PONG"), b"+PONG\r\n") if form == "LADDR" else None),
                f"CLIENT KILL {form}: the connection stays",
            )
    # What CLIENT LIST shows: the fields of Redis in its order, then those that newer versions have.
    for link in me:
        link.do("CLIENT", "SETNAME", "lister")
    fields = []
    for link in me:
        line = next(line for line in link.do("CLIENT", "LIST")[0][1].split(b"\n") if b"name=lister" in line)
        entries = dict(part.split(b"=", 1) for part in line.split(b" "))
        want(entries[b"cmd"] == b"client|list" and entries[b"db"] == b"0", f"CLIENT LIST: {line}")
        fields.append([name for name in entries])
    want(fields[1][: len(fields[0])] == fields[0] or set(fields[0]) <= set(fields[1]), f"CLIENT LIST: fields {fields}")
    return "WATCH, CLIENT KILL, CLIENT LIST"


def scans(reference, node):
    """Every key exactly once on a resting store, whatever the options."""
    names = [b"scan:%d" % number for number in range(700)] + [b"other:%d" % number for number in range(300)]
    counted = 0
    with Link(reference.port) as theirs, Link(node.port) as ours:
        for link in (theirs, ours):
            link.do("FLUSHALL")
            for start in range(0, len(names), 100):
                link.do("MSET", *[word for name in names[start : start + 100] for word in (name, "v")])
            link.do("PEXPIREAT", "scan:1", "1")
            link.do("EXPIRE", "scan:2", "100000")
        for options in (
            [],
            ["COUNT", "1"],
            ["COUNT", "1000"],
            ["MATCH", "scan:*"],
            ["MATCH", "*:1?", "COUNT", "50"],
            ["TYPE", "string"],
            ["TYPE", "list"],
            ["MATCH", "nosuch"],
            ["MATCH", "[os]*:7", "TYPE", "STRING"],
        ):
            found = []
            for link in (theirs, ours):
                cursor, keys = b"0", []
                while True:
                    (_, (where, batch)), _ = link.do("SCAN", cursor, *options)
                    keys += [key for _, key in batch[1]]
                    cursor = where[1]
                    if cursor == b"0":
                        break
                want(len(keys) == len(set(keys)), f"SCAN {options} gives a key twice")
                found.append(sorted(keys))
            want(found[0] == found[1], f"SCAN {options}: redis-server finds {len(found[0])} keys, baton {len(found[1])}")
            counted += 1
    return f"{counted} kinds over {len(names)} keys"


def shapes(reference, node):
    """Arity and key positions of each command that both know."""
    with Link(reference.port) as theirs, Link(node.port) as ours:
        names = [name for _, name in ours.do("COMMAND", "LIST")[0][1]]
        known = 0
        for name in names:
            (_, (there,)), _ = theirs.do("COMMAND", "INFO", name)
            (_, (here,)), _ = ours.do("COMMAND", "INFO", name)
            want(here[1] is not None, f"COMMAND INFO does not know {name}, which COMMAND LIST shows")
            if there[1] is None or there[1][0] != here[1][0]:
                continue
            known += 1
            for at, what in ((1, "arity"), (3, "first key"), (4, "last key"), (5, "step")):
                want(there[1][at] == here[1][at], f"{name}: {what} {there[1][at]} in redis-server, {here[1][at]} in baton")
            flags = [{flag for _, flag in info[1][2][1]} & {b"write", b"readonly", b"fast", b"no_auth"} for info in (there, here)]
            want(flags[0] == flags[1], f"{name}: {flags[0]} in redis-server, {flags[1]} in baton")
        return f"{known} commands and subcommands of {len(names)}"


def large(reference, node):
    """Values up to the limit, and a byte more."""
    limit = 8 << 20
    asked = [
        ["SET", "big", b"x" * limit],
        ["STRLEN", "big"],
        ["APPEND", "big", "x"],
        ["SETRANGE", "big", limit, "x"],
        ["SETRANGE", "big", limit - 1, "y"],
        ["GETRANGE", "big", -3, -1],
        ["SETRANGE", "other", 9223372036854775807, "x"],
        ["GET", "big"],
        ["GETSET", "big", b"\0" * 70000],
        ["MSET", *(word for n in range(20) for word in (b"m%d" % n, b"z" * 100_000))],
        ["MGET", *(b"m%d" % n for n in range(20))],
        ["EXISTS", *(["big"] * 20_000)],
        ["DEL", "big", "other", *(b"m%d" % n for n in range(20))],
        ["GET", b"k" * 4096],
    ]
    with Link(reference.port) as theirs, Link(node.port) as ours:
        for words in asked:
            a, b = theirs.do(*words), ours.do(*words)
            want(a == b, f"{str(words[:2])[:80]}: redis-server says {a[1][:100]!r}, baton {b[1][:100]!r}")
        for link in (theirs, ours):
            link.send(encode("MULTI") + encode("INCR", "sum") * 20_000 + encode("EXEC"))
        while True:
            a, b = theirs.reply(), ours.reply()
            want(a == b, f"20 000 commands in EXEC: redis-server says {a[1][:100]!r}, baton {b[1][:100]!r}")
            if a[0][0] == b"*":
                break
        for link in (theirs, ours):
            link.send(b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n" % (limit + 1))
            want(
                link.reply()[1] == b"-ERR Protocol error: invalid bulk length\r\n" and link.reply() is None, "a value above 8 MiB is taken"
            )
    return f"{len(asked)} commands with up to {limit} bytes"


# ---- what Redis 7.0 does not have ----


def later(node):
    def shown(reply):
        mark, payload = reply
        if mark == b":":
            return int(payload)
        if mark == b"*":
            return [shown(part) for part in payload]
        return mark + payload if mark in b"+-" else payload

    with Link(node.port) as link:
        for text, wanted in LATER:
            answer = shown(link.do(*text.split(" "))[0])
            want(answer == wanted, f"{text!r}: {answer!r}, not {wanted!r}")
    return f"{len(LATER)} commands"


def checks(report, world):
    long = world.long
    report.check("as redis-server: the comparison can fail", can_fail)
    if shutil.which("redis-server") is None:
        return report.check("as redis-server", lambda: tool("redis-server"))
    alone = [
        ("requests that are none", lambda: spoken(world, reference, node)),
        ("stories", lambda: everyday(reference, node)),
        ("connections by turns", lambda: crossed_streams(world, reference, node, 400 if long else 8, 300)),
        ("broken streams", lambda: broken_streams(world, reference, node, 3000 if long else 30)),
        ("quoted lines", lambda: quoted_lines(world, reference, node, 20_000 if long else 300)),
        ("patterns", lambda: patterns(world, reference, node, 100_000 if long else 2000)),
        ("SCAN", lambda: scans(reference, node)),
        ("COMMAND INFO", lambda: shapes(reference, node)),
        ("large values", lambda: large(reference, node)),
        ("newer than 7.0", lambda: later(node)),
        ("random streams", lambda: random_streams(world, reference, node, 20_000 if long else 300, 80)),
    ]
    if not report.only or any(report.only in f"as redis-server: {name}" for name, _ in alone):
        sandbox = Sandbox(world, "replies", 1)
        try:
            with Reference(world) as reference:
                node = sandbox.up().wait_primary()
                for name, function in alone:
                    report.check(f"as redis-server: {name}", function)
        finally:
            sandbox.down()
        report.check("as redis-server: no panic in the log", lambda: want(not sandbox.panics(), sandbox.panics()))
    report.check("as redis-server: strangers", strangers, world)
    report.check("as redis-server: a pair of nodes", pair_of_nodes, world)


def pair_of_nodes(world):
    """Every write waits for a standby: the replies are the same, and so are those of the standby and of a replica."""
    with (
        Reference(world) as reference,
        Reference(world, "--replicaof", "127.0.0.1", str(reference.port)) as replica,
        Sandbox(world, "replies-pair", 2) as sandbox,
    ):
        node = sandbox.wait_primary()
        count = 2000 if world.long else 40
        said = random_streams(world, reference, node, count, 80, pair=True)
        standby = next(other for other in sandbox.nodes if other is not node)
        with Link(reference.port) as theirs, Link(node.port) as ours:
            for link in (theirs, ours):
                link.do("FLUSHALL")
                link.do("MSET", "k1", "v", "k2", "10", "k3", "", "a b", "x" * 100, "f1", "1.5")
                link.do("EXPIRE", "k3", "500000")
                link.do("SET", "k4", b"\0\r\n", "PXAT", "5000000000000")
            sandbox.wait_caught_up(standby)
            # Behind the last write, so that the replica has it when it has this.
            wait_for(lambda: theirs.do("WAIT", "1", "100")[0] == (b":", b"1"), 30, "the replica of redis-server does not follow")
            for words in (["WAIT", "1", "0"], ["WAIT", "2", "5"]):
                a, b = theirs.do(*words), ours.do(*words)
                want(a == b, f"{words} with one replica: redis-server says {a[1]!r}, baton {b[1]!r}")
        held = []
        for port in (replica.port, standby.port):
            with Link(port) as link:
                keys = sorted(key for _, key in link.do("KEYS", "*")[0][1])
                held.append([(key, link.do("GET", key)[1]) for key in keys])
        want(held[0] == held[1] and len(held[0]) == 6, f"the replica holds {held[0]}, the standby {held[1]}")
        random_streams(world, replica, standby, count, 80)
        return f"{said}; as many on the standby"
