"""What a node takes: a core's share when idle, memory under load."""

import os
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


def checks(report, world):
    report.check("an idle node", idle, world)
    report.check("memory with 2000 clients", crowded, world)
