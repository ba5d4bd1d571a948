"""Seeded streams of commands for the chapter `replies`: mostly sensible ones, often with a word too many, too few or wrong."""

from harness import encode

KEYS = [b"k1", b"k2", b"k3", b"k4", b"", b"k\0\xff", b"a b", b"{tag}k", b"k\r\n5"]
VALUES = [
    b"v",
    b"",
    b"10",
    b"-5",
    b"0",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775806",
    b"hello world",
    b"a\r\nb",
    b"$-1\r\n",
    b"\0\x01\xff\xfe",
    b"007",
    b"+1",
    b" 1",
    b"1 ",
    b"-0",
    b"1.5",
    b"1e3",
    b"3.0e-5",
    b"x" * 100,
    b"y" * 4000,
]
INTEGERS = [
    b"0",
    b"1",
    b"-1",
    b"2",
    b"10",
    b"100",
    b"-100",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"-9223372036854775809",
    b"+1",
    b" 1",
    b"1 ",
    b"01",
    b"-0",
    b"",
    b"1.0",
    b"1e2",
    b"0x10",
    b"abc",
    b"18446744073709551616",
    b"2147483647",
    b"2147483648",
    b"-2147483649",
    b"4294967296",
    b"\xff",
    b"1\0",
    b"99999999999999999999999999999999999",
]
FLOATS = [
    b"0",
    b"1",
    b"-1.5",
    b"3.25",
    b"1e3",
    b"5.0e3",
    b"-2.5e-3",
    b"0.1",
    b"0.2",
    b"inf",
    b"-inf",
    b"+inf",
    b"infinity",
    b"nan",
    b"abc",
    b"",
    b" 1",
    b"1 ",
    b"1e",
    b".5",
    b"5.",
    b"+2",
    b"1_000",
    b"1,5",
    b"1e1",
    b"12345678",
]
# Times far enough from now that a slow machine sees the same: long ago, or in hours.
AFTER = [
    b"100000",
    b"7200000",
    b"1000000",
    b"0",
    b"-1",
    b"-100",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775",
    b"9223372036854776",
    b"9223370000000000000",
    b"-9223372036854775",
    b"abc",
    b"",
    b"1.5",
    b"+7",
    b"9223372036854775808",
]
MOMENTS = [
    b"1",
    b"1000",
    b"1600000000",
    b"1600000000000",
    b"4000000000",
    b"4000000000000",
    b"5000000000",
    b"5000000000000",
    b"0",
    b"-1",
    b"9223372036854775807",
    b"9223372036854775",
    b"9223372036854776",
    b"-9223372036854775808",
    b"abc",
    b"",
]
PATTERNS = [
    b"*",
    b"k*",
    b"?1",
    b"k[12]",
    b"k[^1]",
    b"k[3-1]",
    b"\\k1",
    b"k\\",
    b"[",
    b"[k",
    b"k[",
    b"**",
    b"",
    b"K*",
    b"*\xff",
    b"k?",
    b"[a-z]*",
    b"[^]",
    b"[]]",
]
JUNK = [
    b"",
    b"NX",
    b"XX",
    b"GT",
    b"LT",
    b"GET",
    b"EX",
    b"PX",
    b"EXAT",
    b"PXAT",
    b"KEEPTTL",
    b"PERSIST",
    b"k1",
    b"10",
    b"-1",
    b"abc",
    b"*",
    b"\0",
    b"\r\n",
    b"MATCH",
    b"COUNT",
    b"TYPE",
    b"ASYNC",
    b"x" * 300,
]


class Stream:
    """One connection's commands."""

    def __init__(self, dice):
        self.dice = dice

    def key(self):
        return self.dice.choice(KEYS)

    def keys(self, most=4):
        return [self.key() for _ in range(self.dice.randint(1, most))]

    def value(self):
        return self.dice.choice(VALUES)

    def integer(self):
        return self.dice.choice(INTEGERS)

    def time_option(self):
        kind = self.dice.choice([b"EX", b"PX", b"EXAT", b"PXAT"])
        return [kind, self.dice.choice(AFTER if kind in (b"EX", b"PX") else MOMENTS)]

    def some(self, *options, most=3):
        """A few of the options in any order; callables make theirs."""
        picked = []
        for _ in range(self.dice.randint(0, most)):
            option = self.dice.choice(options)
            picked += option() if callable(option) else [option]
        return picked

    # Each gives the words of one command.

    def set(self):
        return [b"SET", self.key(), self.value(), *self.some(b"NX", b"XX", b"GET", b"KEEPTTL", self.time_option, b"nx", b"get")]

    def getex(self):
        return [b"GETEX", self.key(), *self.some(b"PERSIST", self.time_option, most=2)]

    def expire(self):
        name = self.dice.choice([b"EXPIRE", b"PEXPIRE", b"EXPIREAT", b"PEXPIREAT"])
        times = MOMENTS if name.endswith(b"AT") else AFTER
        return self.unlike([name, self.key(), self.dice.choice(times), *self.some(b"NX", b"XX", b"GT", b"LT", most=2)])

    def unlike(self, words):
        """A time that is compared with another is like no other: of two equal ones the later command means a later moment, or
        the same millisecond."""
        upper = [word.upper() for word in words]
        if upper[0] in (b"EXPIRE", b"PEXPIRE") and (b"GT" in upper[3:] or b"LT" in upper[3:]) and words[2].isdigit() and len(words[2]) < 19:
            words[2] = b"%d" % (self.dice.randrange(10**4, 10**6) * 1000)
        return words

    def one_key(self):
        names = [b"GET", b"GETDEL", b"STRLEN", b"INCR", b"DECR", b"TYPE", b"PERSIST", b"TTL", b"PTTL", b"EXPIRETIME", b"PEXPIRETIME"]
        return [self.dice.choice(names), self.key()]

    def many_keys(self):
        return [self.dice.choice([b"DEL", b"UNLINK", b"EXISTS", b"TOUCH", b"MGET"]), *self.keys()]

    def key_value(self):
        return [self.dice.choice([b"SETNX", b"APPEND", b"GETSET"]), self.key(), self.value()]

    def by_integer(self):
        return [self.dice.choice([b"INCRBY", b"DECRBY"]), self.key(), self.integer()]

    def by_float(self):
        # Keys of their own: sums beyond 17 digits are Redis's, or exact.
        return self.dice.choice(
            [[b"INCRBYFLOAT", self.dice.choice([b"f1", b"f2"]), self.dice.choice(FLOATS)], [b"GET", b"f1"], [b"SET", b"f2", b"-1.25"]]
        )

    def timed_set(self):
        return [self.dice.choice([b"SETEX", b"PSETEX"]), self.key(), self.dice.choice(AFTER), self.value()]

    def pairs(self):
        words = [self.dice.choice([b"MSET", b"MSET", b"MSETNX"])]
        for _ in range(self.dice.randint(1, 3)):
            words += [self.key(), self.value()]
        return words

    def ranges(self):
        if self.dice.random() < 0.3:
            return [
                b"SETRANGE",
                self.key(),
                self.dice.choice([b"0", b"1", b"5", b"50", b"-1", b"8388608", b"8388607", b"9223372036854775807", b"abc"]),
                self.dice.choice([b"", b"x", b"xyz" * 5]),
            ]
        return [self.dice.choice([b"GETRANGE", b"SUBSTR"]), self.key(), self.integer(), self.integer()]

    def rename(self):
        return [self.dice.choice([b"RENAME", b"RENAMENX"]), self.key(), self.key()]

    def walk(self):
        if self.dice.random() < 0.4:
            return [b"KEYS", self.dice.choice(PATTERNS)]
        words = [
            b"SCAN",
            self.dice.choice([b"0", b"0", b"0", b"0", b"-1", b"abc", b"", b"+0", b" 0", b"00", b"18446744073709551616", b"0x0"]),
        ]
        options = [
            lambda: [b"MATCH", self.dice.choice(PATTERNS)],
            lambda: [b"COUNT", self.dice.choice([b"1000", b"500", b"0", b"-1", b"abc", b"", b"1.5"])],
            lambda: [b"TYPE", self.dice.choice([b"string", b"list", b"STRING", b"", b"nosuch"])],
        ]
        return words + [b"COUNT", b"1000"] + self.some(*options)

    def transaction(self):
        return [
            self.dice.choice([b"MULTI", b"MULTI", b"EXEC", b"EXEC", b"EXEC", b"DISCARD", b"UNWATCH", b"WATCH", b"WATCH"]),
        ]

    def watch(self):
        return [b"WATCH", *self.keys(2)]

    def connection(self):
        return self.dice.choice(
            [
                [b"PING"],
                [b"PING", self.value()],
                [b"ECHO", self.value()],
                [b"SELECT", self.integer()],
                [b"SELECT", b"0"],
                [b"READONLY"],
                [b"READWRITE"],
                [b"CLIENT", b"SETNAME", self.dice.choice([b"me", b"", b"a b", b"a\nb", b"\xff", b"x" * 200])],
                [b"CLIENT", b"GETNAME"],
                [b"CLIENT", b"ID"],
                [b"CLIENT", b"NO-EVICT", self.dice.choice([b"ON", b"off", b"maybe", b""])],
                [b"CLIENT", b"NOSUCH", self.value()],
                [b"CLIENT"],
                [b"CLIENT", b"GETREDIR"],
                [b"CLIENT", b"UNBLOCK", self.integer()],
                [b"CLIENT", b"UNBLOCK", self.integer(), self.dice.choice([b"TIMEOUT", b"ERROR", b"x"])],
                [b"CLIENT", b"TRACKING", self.dice.choice([b"OFF", b"maybe"])],
                [b"CLIENT", b"LIST", *self.some(b"ID", b"TYPE", b"normal", b"pubsub", b"nosuch", b"0", b"abc")],
                [b"CLIENT", b"INFO"],
                [b"CLIENT", b"HELP"],
                [
                    b"CLIENT",
                    b"KILL",
                    *self.some(
                        b"ID",
                        b"99999",
                        b"0",
                        b"abc",
                        b"ADDR",
                        b"1.2.3.4:5",
                        b"LADDR",
                        b"TYPE",
                        b"pubsub",
                        b"nosuch",
                        b"SKIPME",
                        b"yes",
                        b"USER",
                        b"nobody",
                        most=4,
                    ),
                ],
                [b"HELLO", *self.some(b"2", b"3", b"4", b"abc", b"AUTH", b"default", b"x", b"SETNAME", b"me", b"a b", most=4)],
                [b"RESET"],
                [b"AUTH", *self.some(b"default", b"x", b"nobody", most=3)],
            ]
        )

    def server(self):
        return self.dice.choice(
            [
                [b"DBSIZE"],
                [b"TIME"],
                [b"LASTSAVE"],
                [b"FLUSHDB", *self.some(b"ASYNC", b"SYNC", b"x", most=2)],
                [b"FLUSHALL", *self.some(b"async", b"x", most=2)],
                [
                    b"WAIT",
                    self.dice.choice([b"0", b"-1", b"abc", b"9223372036854775807", b""]),
                    self.dice.choice([b"1", b"-1", b"abc", b"5", b"1.5"]),
                ],
                [b"ROLE"],
                [b"INFO", *self.some(b"server", b"nosuch", b"replication", b"all")],
                [b"COMMAND", b"COUNT"],
                [b"COMMAND", b"NOSUCH"],
                [b"COMMAND", b"GETKEYS", *self.some(b"SET", b"k1", b"v", b"MSET", b"PING", b"GET", b"NOSUCH", most=4)],
                [b"COMMAND", b"INFO", b"nosuch"],
                [b"COMMAND", b"DOCS", b"nosuch"],
                [b"COMMAND", b"LIST", *self.some(b"FILTERBY", b"PATTERN", b"get*", b"MODULE", b"ACLCAT", b"x", most=4)],
                [b"CONFIG", b"GET", self.dice.choice([b"databases", b"timeout", b"nosuch", b"proto-max-bulk-len", b"TIMEOUT", b"save"])],
                [b"CONFIG"],
                [b"CONFIG", b"GET"],
                [b"CONFIG", b"NOSUCH"],
                [b"CONFIG", b"SET", *self.some(b"nosuch", b"x", most=3)],
                [b"CONFIG", b"RESETSTAT", *self.some(b"x", most=1)],
                [b"NOSUCH", *self.keys()],
                [b"nosuch"],
                [b"", b"x"],
                [b"x" * 200, b"y" * 200, b"z"],
                [b"GET\0", b"k"],
                [b"NO\r\nSUCH", b"a\r\nb"],
                [b"nosuch'\"", b"it's"],
            ]
        )

    def command(self):
        dice = self.dice
        kinds = [
            (12, self.set),
            (3, self.getex),
            (5, self.expire),
            (10, self.one_key),
            (5, self.many_keys),
            (5, self.key_value),
            (5, self.by_integer),
            (2, self.by_float),
            (2, self.timed_set),
            (4, self.pairs),
            (3, self.ranges),
            (2, self.rename),
            (2, self.walk),
            (6, self.transaction),
            (2, self.watch),
            (4, self.connection),
            (3, self.server),
        ]
        make = dice.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])[0]
        words = list(make())
        chance = dice.random()
        if chance < 0.04 and len(words) > 1:
            words.pop(dice.randrange(1, len(words)))
        elif chance < 0.08:
            words.insert(dice.randrange(1, len(words) + 1), dice.choice(JUNK))
        elif chance < 0.11 and len(words) > 1:
            words[dice.randrange(1, len(words))] = dice.choice(JUNK)
        elif chance < 0.13:
            del words[1:]
        elif chance < 0.25:
            words[0] = bytes(byte ^ 0x20 if 65 <= byte <= 90 and dice.random() < 0.5 else byte for byte in words[0])
        if self.hangs(words):
            return self.command()
        return self.unlike(words)

    @staticmethod
    def hangs(words):
        """What would wait, close or silence the connection, or concerns others."""
        upper = [word.upper() for word in words]
        # A HELLO that fails behind its SETNAME has set the name in Redis 7.0.
        if upper[0] == b"HELLO" and b"SETNAME" in upper[:-2]:
            return upper.index(b"SETNAME") < len(words) - 2
        if upper[0] == b"WAIT" and len(words) == 3:
            return upper[1] not in (b"0", b"-1", b"ABC", b"9223372036854775807", b"") or upper[2] == b"0"
        if upper[0] in (b"BATON.WAITLSN", b"SHUTDOWN", b"MONITOR", b"QUIT"):
            return True
        if upper[0] == b"CLIENT" and len(words) > 1:
            return (
                upper[1:3] in ([b"REPLY", b"OFF"], [b"REPLY", b"SKIP"])
                or upper[1] == b"KILL"
                and (b"*" in upper or len(words) > 2 and b"NO" in upper)
            )
        return False

    def written(self, words):
        """A request's bytes: mostly an array, at times a line."""
        dice = self.dice
        if dice.random() < 0.08 and sum(map(len, words)) < 4000:
            line = b" ".join(self.quoted(word) for word in words) + dice.choice([b"\r\n", b"\n"])
            if words[0] and not line.startswith(b"*"):
                return line
        noise = dice.choice([b"\r\n", b"*0\r\n", b"*-1\r\n"]) if dice.random() < 0.02 else b""
        return noise + encode(*words)

    def quoted(self, word):
        plain = word and all(33 <= byte < 127 and byte not in b"\"'\\" for byte in word)
        style = self.dice.randrange(3)
        if plain and style:
            return word
        if style == 1 and all(byte not in b"\n\0" for byte in word) and not word.endswith(b"\\") and b"\\'" not in word:
            return b"'" + word.replace(b"'", b"\\'") + b"'"
        out = b'"'
        for byte in word:
            short = {10: b"\\n", 13: b"\\r", 9: b"\\t", 8: b"\\b", 7: b"\\a", 34: b'\\"', 92: b"\\\\"}.get(byte)
            out += short or (bytes([byte]) if 32 <= byte < 127 else b"\\x%02x" % byte)
        return out + b'"'
