"""What a node takes: a core's share when idle, memory under load."""

import os
import resource
import socket
import threading
import time

from badinput import memory
from harness import Client, Gone, Sandbox, encode, want


def ticks(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def idle(world):
    with Sandbox(world, "idle", 3) as sandbox:
        with sandbox.node(1).client() as client:
            client.do("SET", "a", "1")
        time.sleep(1)
        before = [ticks(node.pid()) for node in sandbox.nodes]
        time.sleep(5)
        per_second = os.sysconf("SC_CLK_TCK")
        shares = [(ticks(node.pid()) - old) / per_second / 5 * 100 for node, old in zip(sandbox.nodes, before)]
        want(max(shares) < 5, f"an idle node takes {max(shares):.1f} % of a core")
        return "of a core: " + ", ".join(f"{share:.1f} %" for share in shares)


def crowded(world):
    """2000 connections, pipelines in bursts, many values: resident within `memory` and a fixed rest."""
    budget, rest = 256, 64
    with Sandbox(world, "crowded", 1) as sandbox:
        node = sandbox.node(1)
        clients = [Client(node.port, timeout=60) for _ in range(2000)]
        peak, stop = [0.0], threading.Event()

        def watch():
            while not stop.is_set():
                peak[0] = max(peak[0], memory(node.pid()))
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        refused = written = 0
        try:
            for round_ in range(12 if world.long else 5):
                for number, client in enumerate(clients):
                    key = (round_ * 2000 + number) * 4
                    client.send(b"".join(encode("SET", f"m:{key + i}", b"v" * 4000) for i in range(4)) + encode("GET", f"m:{key}"))
                for client in clients:
                    replies = [client.read() for _ in range(5)]
                    written += sum(reply == b"OK" for reply in replies)
                    refused += sum(reply != b"OK" for reply in replies[:4])
        finally:
            stop.set()
            watcher.join()
        with node.client() as client:
            want(client.do("PING") == b"PONG", "PING")
        for client in clients:
            client.close()
        megabytes = written * 4000 / (1 << 20)
        text = f"peak {peak[0]:.0f} MiB resident, memory = {budget} MiB, {written} writes ({megabytes:.0f} MiB), {refused} refused"
        want(peak[0] < budget + rest, text)
        want(refused == 0, text)
        return text


def unread(world):
    """3000 connections that ask for a lot and read nothing: their replies stay within their share of `memory`."""
    budget, rest, size = 256, 64, 100_000
    with Sandbox(world, "unread", 1) as sandbox:
        node = sandbox.node(1)
        with node.client() as client:
            for number in range(20):
                want(client.do("SET", f"big:{number}", os.urandom(size)) == b"OK", "SET")
        asking = b"".join(encode("GET", f"big:{number}") for number in range(20))
        links, peak = [], 0.0
        for _ in range(3000):
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.connect(("127.0.0.1", node.port))
            link.setblocking(False)
            link.send(asking)
            links.append(link)
            peak = max(peak, memory(node.pid()))
        with node.client(timeout=30) as client:
            want(client.do("GET", "big:0") is not None, "others are not served while many read nothing")
        peak = max(peak, memory(node.pid()))
        for link in links:
            link.close()
        text = f"peak {peak:.0f} MiB resident, memory = {budget} MiB, 3000 clients asked for {3000 * 20 * size >> 30} GiB"
        want(peak < budget + rest, text)
        return text


def descriptors(world):
    """The usual soft limit of open files is far below `max_clients`: the node raises it by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    node = Sandbox(world, "descriptors", 1)
    try:
        # What is started from here inherits it.
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        node.up()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with node as sandbox:
        clients = [Client(sandbox.node(1).port, timeout=20) for _ in range(400)]
        for client in clients:
            client.send(encode("PING"))
        answered = sum(client.read() == b"PONG" for client in clients)
        for client in clients:
            client.close()
        want(answered == 400, f"with a soft limit of 128 open files {answered} of 400 clients are answered")
        return "400 clients with a soft limit of 128"


def checks(report, world):
    report.check("an idle node", idle, world)
    report.check("memory with 2000 clients", crowded, world)
    report.check("clients that do not read", unread, world)
    report.check("the limit of open files", descriptors, world)
