"""How long a node takes to be back after kill -9, with much log to read."""

import time

from harness import Error, Gone, Sandbox, wait_for, want


def large_log(world):
    mib = 1024 if world.long else 96
    with Sandbox(world, "largelog", 1) as sandbox:
        node = sandbox.node(1)
        size, written, keys = 1000, 0, 50_000
        with node.client(timeout=60) as client:
            while node.status()["flushed_lsn"] < mib << 20:
                batch = []
                for _ in range(200):
                    number = written + len(batch)
                    batch.append(("SET", f"r:{number % keys}", b"%d:" % number + b"x" * size))
                replies, whole = client.all(batch)
                want(whole and all(reply == b"OK" for reply in replies), f"a write is answered with {replies[-1:]}")
                written += len(batch)
        end = node.status()["flushed_lsn"]
        node.kill()
        begin = time.monotonic()
        node.launch("-M", "primary")

        def answers():
            # Before it leads again it may answer as a standby does: with what it knows to be committed.
            if node.role() != ("Primary", "Normal"):
                return False
            try:
                with node.client(timeout=30) as client:
                    reply = client.do("GET", f"r:{(written - 1) % keys}")
                    return reply is not None and not isinstance(reply, Error)
            except (OSError, Gone):
                return False

        wait_for(answers, 300, "no answer after the restart")
        took = time.monotonic() - begin
        with node.client(timeout=60) as client:
            for first in range(max(0, written - keys), written, 500):
                numbers = range(first, min(first + 500, written))
                found = client.do("MGET", *[f"r:{number % keys}" for number in numbers])
                for number, value in zip(numbers, found):
                    text = f"r:{number % keys} holds {(value or b'')[:12]}, {len(value or b'')} bytes, not {number}"
                    want(value == b"%d:" % number + b"x" * size, f"{text}; {written} were written")
        redone = [line.split("frames=")[1].split()[0] for line in node.log().splitlines() if "log recovered" in line][-1]
        return f"{end >> 20} MiB of log, {written} records: serving after {took:.2f} s ({written / took:.0f} records/s; {redone} frames read)"


def checks(report, world):
    report.check("restart after kill -9", large_log, world)
