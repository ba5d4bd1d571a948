"""Clients that exist: redis-py, redis-cli, redis-benchmark. None may notice that this is not Redis."""

import asyncio
import os
import random
import subprocess
import threading
import time

from harness import Broken, Sandbox, Skip, encode, tool, wait_for, want


def library():
    try:
        import redis
    except ImportError as error:
        raise Skip("redis-py is not installed (tools/setup-ci)") from error
    want(int(redis.__version__.split(".")[0]) >= 5, f"redis-py {redis.__version__} is older than 5")
    return redis


def connect(sandbox, **options):
    return library().Redis(port=sandbox.wait_primary().port, **options)


def basics(world, sandbox):
    redis = library()
    for protocol in (2, 3):
        client = connect(sandbox, protocol=protocol, client_name=f"real-{protocol}")
        want(client.ping() is True, "PING")
        want(str(client.client_getname()).strip("b'") == f"real-{protocol}", f"client name {client.client_getname()}")
        want(client.set("b:k", "v") is True and client.get("b:k") == b"v", "SET and GET")
        want(client.set("b:k", "w", nx=True) is None and client.set("b:none", "w", xx=True) is None, "NX and XX")
        want(client.set("b:k", "w", get=True) == b"v" and client.getset("b:k", "x") == b"w", "GET options")
        want(client.getdel("b:k") == b"x" and client.get("b:k") is None, "GETDEL")
        want(client.incr("b:n") == 1 and client.incrby("b:n", 41) == 42 and client.decr("b:n") == 41, "INCR")
        want(abs(client.incrbyfloat("b:f", 1.5) - 1.5) < 1e-9, "INCRBYFLOAT")
        want(client.append("b:a", "ab") == 2 and client.append("b:a", "cd") == 4, "APPEND")
        want(client.strlen("b:a") == 4 and client.getrange("b:a", 1, 2) == b"bc", "STRLEN and GETRANGE")
        want(client.setrange("b:a", 6, "z") == 7 and client.get("b:a") == b"abcd\0\0z", "SETRANGE")
        want(client.mset({"b:1": 1, "b:2": 2}) and client.mget("b:1", "b:2", "b:3") == [b"1", b"2", None], "MSET and MGET")
        want(client.msetnx({"b:1": 1, "b:9": 2}) is False and client.get("b:9") is None, "MSETNX")
        want(client.exists("b:1", "b:2", "b:3") == 2 and client.type("b:1") == b"string", "EXISTS and TYPE")
        want(client.delete("b:1", "b:2", "b:n", "b:f", "b:a") == 5, "DEL")
        info = client.info()
        want(info["role"] == "master" and "redis_version" in info, f"INFO {list(info)[:5]}")
        # The library tells its name behind the application's back, and ignores it when that fails.
        mine = next(entry for entry in client.client_list() if entry["name"] == f"real-{protocol}")
        want(mine.get("lib-name", "").startswith("redis-py") and mine.get("resp") == str(protocol), f"CLIENT SETINFO and HELLO: {mine}")
        want(isinstance(client.client_list(), list) and client.client_id() > 0, "CLIENT LIST and ID")
        want(client.config_get("maxmemory") is not None, "CONFIG GET")
        want(client.dbsize() >= 0 and client.time()[0] > 1_600_000_000, "DBSIZE and TIME")
        want(client.command_count() > 40, "COMMAND COUNT")
        try:
            client.execute_command("LPUSH", "b:l", "x")
            raise Broken("LPUSH is answered although there are no lists")
        except redis.ResponseError:
            pass
        client.close()
    compare_and_set(connect(sandbox))
    return f"redis-py {redis.__version__}, RESP2 and RESP3"


def compare_and_set(client):
    redis = library()
    client.delete("b:cas")
    try:
        client.execute_command("SET", "b:cas", "1", "IFEQ", "0")
    except redis.ResponseError:
        return
    client.set("b:cas", "1")
    want(client.execute_command("SET", "b:cas", "2", "IFEQ", "0") is None, "IFEQ with another value")
    want(client.execute_command("SET", "b:cas", "2", "IFEQ", "1") in (True, b"OK"), "IFEQ with the same value")
    want(client.get("b:cas") == b"2", "IFEQ")


def pipelines(world, sandbox):
    client = connect(sandbox)
    pipe = client.pipeline(transaction=False)
    for number in range(20_000):
        pipe.set(f"p:{number}", number)
    want(all(pipe.execute()), "a pipeline of 20000 SETs")
    pipe = client.pipeline(transaction=True)
    for number in range(2000):
        pipe.incrby("p:sum", number)
    want(pipe.execute()[-1] == 1999 * 1000, "MULTI of 2000 increments")
    want(client.get("p:19999") == b"19999", "the last of the pipeline")
    pipe = client.pipeline(transaction=True)
    pipe.set("p:text", "abc")
    pipe.incr("p:text")
    pipe.set("p:behind", "1")
    results = pipe.execute(raise_on_error=False)
    want(results[0] is True and isinstance(results[1], Exception) and results[2] is True, f"an error inside EXEC: {results}")


def pools_and_locks(world, sandbox):
    """What applications build on: a shared pool with health checks, locks by SET NX PX and WATCH, asyncio."""
    redis = library()
    port, threads, each = sandbox.wait_primary().port, 6, 12
    for protocol in (2, 3):
        pool = redis.BlockingConnectionPool(port=port, protocol=protocol, max_connections=4, health_check_interval=0.001, timeout=30)
        client = redis.Redis(connection_pool=pool, decode_responses=True)
        want(client.client_setinfo("LIB-NAME", "pooled") and client.client_no_evict("OFF"), "CLIENT SETINFO")
        client.delete("l:lock", "l:sum")
        troubles = []

        def work(who):
            try:
                for _ in range(each):
                    wait_for(lambda: client.set("l:lock", who, nx=True, px=60_000), 60, "the lock is never free", 0.0005)
                    client.set("l:sum", int(client.get("l:sum") or 0) + 1)

                    def release(pipe):
                        want(pipe.get("l:lock") in (who, who.encode()), "the lock belongs to somebody else")
                        pipe.multi()
                        pipe.delete("l:lock")

                    want(client.transaction(release, "l:lock") == [1], "the lock was gone")
            except Exception as error:
                troubles.append(f"{type(error).__name__} {error}")

        running = [threading.Thread(target=work, args=(f"w{who}",)) for who in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(120)
        want(not troubles, troubles[:3])
        want(int(client.get("l:sum")) == threads * each, f"{threads * each} turns, the sum says {client.get('l:sum')}")
        pool.disconnect()

    async def together():
        client = redis.asyncio.Redis(port=port, protocol=3)
        await client.delete("l:async")
        got = await asyncio.gather(*[client.incr("l:async") for _ in range(200)])
        async with client.pipeline(transaction=True) as pipe:
            got.append((await pipe.incr("l:async").get("l:async").execute())[0])
        await client.aclose()
        return got

    want(sorted(asyncio.run(together())) == list(range(1, 202)), "asyncio: increments are lost")
    return f"{threads} threads over 4 connections, RESP2 and RESP3; asyncio"


def watched_increments(world, sandbox):
    """GET, add one, SET under WATCH, from many threads: as many successes as the counter says."""
    redis = library()
    port, threads, each = sandbox.wait_primary().port, 8, 60
    conflicts, troubles = [0] * threads, []
    redis.Redis(port=port).set("w:counter", 0)

    def add(who):
        client = redis.Redis(port=port)
        try:
            for _ in range(each):
                while True:
                    with client.pipeline() as pipe:
                        try:
                            pipe.watch("w:counter")
                            value = int(pipe.get("w:counter"))
                            pipe.multi()
                            pipe.set("w:counter", value + 1)
                            pipe.set(f"w:{who}", value + 1)
                            pipe.execute()
                            break
                        except redis.WatchError:
                            conflicts[who] += 1
        except Exception as error:
            troubles.append(f"{type(error).__name__} {error}")

    running = [threading.Thread(target=add, args=(who,)) for who in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    want(not troubles, troubles)
    value = int(redis.Redis(port=port).get("w:counter"))
    want(value == threads * each, f"{threads * each} successful increments, the counter says {value}")
    want(sum(conflicts) > 0, "there was no conflict: the check shows nothing")
    return f"{value} increments, {sum(conflicts)} conflicts"


def scans(world, sandbox):
    client = connect(sandbox)
    names = {b"s:%d" % number for number in range(5000)}
    client.mset({name: 1 for name in names})
    found = list(client.scan_iter("s:*", count=100))
    want(set(found) == names, f"SCAN finds {len(set(found))} of {len(names)} keys")
    want(len(found) == len(set(found)), "SCAN on a resting store gives a key twice")
    stop = threading.Event()

    def churn():
        other = connect(sandbox)
        number = 0
        while not stop.is_set():
            number += 1
            other.set(f"t:{number % 500}", number)
            other.delete(f"t:{(number + 250) % 500}")

    busy = threading.Thread(target=churn)
    busy.start()
    try:
        for count in (1, 17, 1000):
            want(names <= set(client.scan_iter("s:*", count=count)), f"SCAN COUNT {count} under writes misses a key")
    finally:
        stop.set()
        busy.join()
    want(set(client.keys("s:*")) == names, "KEYS")
    want(client.unlink(*names) == len(names) and not list(client.scan_iter("s:*")), "UNLINK")


def time_to_live(world, sandbox):
    client = connect(sandbox)
    standby = next(node for node in sandbox.nodes if node is not sandbox.primary())
    reader = library().Redis(port=standby.port)
    client.set("t:1", 1, px=300)
    client.set("t:2", 2, ex=100)
    client.set("t:3", 3)
    want(0 < client.pttl("t:1") <= 300 and 98 <= client.ttl("t:2") <= 100, "PTTL and TTL")
    want(client.ttl("t:3") == -1 and client.ttl("t:none") == -2, "TTL without a time, without a key")
    want(client.expire("t:3", 50) and client.persist("t:3") and client.ttl("t:3") == -1, "EXPIRE and PERSIST")
    want(client.expire("t:3", 50, gt=True) == 0 and client.expire("t:3", 50, lt=True) == 1, "EXPIRE GT and LT")
    want(client.getex("t:3", persist=True) == b"3" and client.ttl("t:3") == -1, "GETEX")
    want(client.expiretime("t:2") > time.time(), "EXPIRETIME")
    want(client.expireat("t:3", int(time.time()) - 10) and client.get("t:3") is None, "EXPIREAT in the past")
    time.sleep(0.35)
    want(client.get("t:1") is None and client.exists("t:1") == 0, "a key outlives its time")
    wait_for(lambda: reader.get("t:1") is None, 3, "a key outlives its time on a standby")
    client.set("t:2", 2, keepttl=True)
    want(client.ttl("t:2") > 90, "KEEPTTL")


def binary_and_big(world, sandbox):
    client = connect(sandbox)
    dice = random.Random(world.seed)
    every = bytes(range(256))
    want(client.set(every, every) and client.get(every) == every, "keys and values of all bytes")
    want(client.set(b"", b"empty key") and client.get(b"") == b"empty key" and client.set("e:v", b"") and client.get("e:v") == b"", "empty key and value")
    want(client.set(b"k" * 4096, b"v") and client.get(b"k" * 4096) == b"v", "a key of 4096 bytes")
    for size in (1 << 20, 3 << 20, 8 << 20):
        value = dice.randbytes(size)
        want(client.set(f"big:{size}", value), f"a value of {size} bytes")
        want(client.get(f"big:{size}") == value, f"a value of {size} bytes comes back changed")
        want(client.getrange(f"big:{size}", size - 5, -1) == value[-5:], "GETRANGE of a big value")
    redis = library()
    try:
        # Without the library's own retries, which would send it again and again.
        redis.Redis(port=sandbox.primary().port, retry=None).set("big:9", b"x" * ((8 << 20) + 1))
        raise Broken("a value above 8 MiB is taken")
    except (redis.ResponseError, redis.ConnectionError):
        pass
    node = sandbox.primary()
    other = next(node for node in sandbox.nodes if node is not sandbox.primary())
    sandbox.wait_caught_up(other)
    want(library().Redis(port=other.port).strlen(f"big:{8 << 20}") == 8 << 20, "the big value on a standby")
    want(connect(sandbox).get(every) == every, "the node after a value that is too big")
    for size in (1 << 20, 3 << 20, 8 << 20):
        client.delete(f"big:{size}")
    return f"node {node.id}, values to 8 MiB"


def cli(world, sandbox, *words, stdin=None, timeout=30):
    command = [tool("redis-cli"), "-p", str(sandbox.wait_primary().port), *map(str, words)]
    done = subprocess.run(command, capture_output=True, input=stdin, timeout=timeout, check=False)
    return done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")


def command_line(world, sandbox):
    want(cli(world, sandbox, "SET", "cli:k", "v").strip() == "OK", "SET")
    want(cli(world, sandbox, "-3", "GET", "cli:k").strip() == "v", "GET over RESP3")
    want("WRONGTYPE" in cli(world, sandbox, "INCR", "cli:k") or "ERR" in cli(world, sandbox, "INCR", "cli:k"), "an error")
    # The interactive client asks for COMMAND DOCS first, to complete what is typed.
    said = cli(world, sandbox, stdin=b"COMMAND DOCS get\nSET cli:i 1\nINCR cli:i\nMULTI\nINCR cli:i\nEXEC\nQUIT\n")
    want("ERR" not in said and "3" in said, f"an interactive session: {said[:300]}")
    docs = cli(world, sandbox, "COMMAND", "DOCS")
    want("ERR" not in docs and "set" in docs, f"COMMAND DOCS: {docs[:200]}")
    want("ERR" not in cli(world, sandbox, "COMMAND"), "COMMAND")
    want("cli:k" in cli(world, sandbox, "--scan", "--pattern", "cli:*"), "--scan")
    want("proto 3" in cli(world, sandbox, "-3", "HELLO"), "HELLO over RESP3")
    for word in ("MONITOR", "SUBSCRIBE x"):
        said = cli(world, sandbox, *word.split(" "))
        want(f"unknown command '{word.split(' ')[0]}'" in said, f"{word} is not refused as Redis words it: {said[:200]}")
    latency = cli(world, sandbox, "-r", 20, "-i", 0.001, "PING")
    want(latency.count("PONG") == 20, "-r 20 PING")
    big = cli(world, sandbox, "--bigkeys", timeout=60)
    want("summary" in big and "ERR" not in big, f"--bigkeys: {big[-300:]}")
    count = 200_000 if world.long else 50_000
    said = cli(world, sandbox, "--pipe", stdin=b"".join(encode("SET", f"pipe:{n}", n) for n in range(count)), timeout=120)
    want(f"errors: 0, replies: {count}" in said, f"--pipe: {said[-200:]}")
    want(cli(world, sandbox, "GET", f"pipe:{count - 1}").strip() == str(count - 1), "the last of --pipe")
    return f"one-shot, interactive, --scan, --bigkeys, --pipe of {count}"


def benchmark(world, sandbox):
    port, shown = sandbox.wait_primary().port, []
    count = 100_000 if world.long else 20_000
    for pipeline in (1, 16):
        command = [tool("redis-benchmark"), "-p", port, "-t", "ping,set,get,incr,mset", "-n", count * (3 if pipeline > 1 else 1),
                   "-P", pipeline, "-c", 50, "-q", "-r", 10000]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=180, check=False)
        said = done.stdout + done.stderr
        want(done.returncode == 0 and "rror" not in said.replace("WARNING: Could not fetch server CONFIG", ""), f"redis-benchmark -P {pipeline}: {said[-400:]}")
        rates = [line.split(":")[0].split(" ")[0] + " " + line.split(":")[1].split(" requests")[0].strip()
                 for line in said.replace("\r", "\n").splitlines() if "requests per second" in line]
        want(len(rates) >= 5, f"redis-benchmark -P {pipeline} measured {rates}")
        shown.append(f"-P {pipeline}: " + ", ".join(rates))
    return "; ".join(shown)


def own_bench(world, sandbox):
    node = sandbox.wait_primary()
    done = node.run("bench", "--seconds", 2, "--clients", 20, "--pipeline", 8, "--workload", "mixed", "--keys", 1000, timeout=60)
    want(done.returncode == 0, f"baton bench: exit {done.returncode} {done.stderr[:300]}")


def all_equal(world, sandbox):
    """After all of it every node holds the same."""
    primary = sandbox.wait_primary()
    for node in sandbox.nodes:
        if node is not primary:
            sandbox.wait_caught_up(node)
    counts = []
    for node in sandbox.nodes:
        with node.client(timeout=60) as client:
            counts.append(client.do("DBSIZE"))
    want(len(set(counts)) == 1, f"DBSIZE differs: {counts}")
    return f"{counts[0]} keys on each of {len(counts)} nodes"


def checks(report, world):
    names = [
        ("redis-py: commands", basics),
        ("redis-py: pipelines and transactions", pipelines),
        ("redis-py: WATCH loops lose no increment", watched_increments),
        ("redis-py: pools, locks, asyncio", pools_and_locks),
        ("redis-py: SCAN", scans),
        ("redis-py: time to live", time_to_live),
        ("redis-py: binary and big values", binary_and_big),
        ("redis-cli", command_line),
        ("redis-benchmark", benchmark),
        ("baton bench", own_bench),
        ("every node holds the same", all_equal),
    ]
    if report.only and not any(report.only in name for name, _ in names):
        return
    sandbox = Sandbox(world, "clients", 3)
    try:
        sandbox.up()
        for name, function in names:
            report.check(name, function, world, sandbox)
    finally:
        sandbox.down()
    report.check("no panic in any log of the clients", lambda: want(not sandbox.panics(), sandbox.panics()))
