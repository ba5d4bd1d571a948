"""Pages that decay on a standby's disk, while it is stopped and while it runs: they are found and made whole from the
other nodes, and no reader ever sees a wrong value."""

import os
import random

from harness import Error, Sandbox, wait_for, want

PAGE = 16 << 10
KEYS = 60_000


def value(number):
    return f"{number}:".encode() * 60


def fill(node):
    """Enough changes for many checkpoints: pages are written by nothing else."""
    with node.client() as client:
        for first in range(0, KEYS, 500):
            replies, whole = client.all([("SET", f"decay:{n}", value(n)) for n in range(first, first + 500)])
            want(whole and all(reply == b"OK" for reply in replies), "a write was refused")


def pages_of(node):
    answer = node.ask(verb="query")
    return answer["result"]["pages"] if answer and answer.get("ok") else None


def damage(path, rng, share):
    """Flips one bit of the content of some pages; how many."""
    flipped = 0
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for at in range(PAGE, size, PAGE):
            file.seek(at)
            head = file.read(400)
            if head[:4] != b"BTNP" or rng.random() > share:
                continue
            byte = rng.randrange(32, 400)
            file.seek(at + byte)
            file.write(bytes([head[byte] ^ (1 << rng.randrange(8))]))
            flipped += 1
        file.flush()
        os.fsync(file.fileno())
    return flipped


def read_all(node):
    with node.client() as client:
        for first in range(0, KEYS, 500):
            replies, whole = client.all([("GET", f"decay:{n}") for n in range(first, first + 500)])
            want(whole, "the connection broke")
            for n, reply in zip(range(first, first + 500), replies):
                want(not isinstance(reply, Error), f"decay:{n} is answered with {reply}")
                want(reply == value(n), f"decay:{n} reads as {reply[:40] if reply else reply!r}")


def repaired(node, before, seconds=60):
    def whole():
        pages = pages_of(node)
        return pages and pages["damaged"] == 0 and pages["repaired"] > before and pages["scrub_passes"] > 0 and pages

    return wait_for(whole, seconds, lambda: f"pages stay damaged: {pages_of(node)}, {node.role()}", step=0.2)


def standby(world):
    config = {"scrub_rate": '"256MiB"', "scrub_every": '"1s"'}
    with Sandbox(world, "decay", 3, config=config) as sandbox:
        rng = random.Random(world.seed)
        primary = sandbox.wait_primary()
        node = next(n for n in sandbox.nodes if n is not primary)
        fill(primary)
        sandbox.wait_caught_up(node, 60)

        node.kill()
        stopped = damage(node.path("pages"), rng, 0.3)
        want(stopped > 5, f"only {stopped} pages to damage: no checkpoint was made")
        node.launch()
        sandbox.wait_standby(node, 60)
        first = repaired(node, 0)
        read_all(node)

        running = damage(node.path("pages"), rng, 0.3)
        passes = pages_of(node)["scrub_passes"]
        wait_for(lambda: pages_of(node)["scrub_passes"] > passes + 1, 60, "the scrubber makes no further pass", step=0.2)
        second = repaired(node, first["repaired"])
        read_all(node)
        read_all(primary)
        want(sandbox.primary() is not None, f"the cluster is not well: {sandbox.roles()}")
        return (
            f"{stopped} pages damaged while stopped, {running} while running, {second['repaired']} repaired, "
            f"{second['scrub_passes']} passes of the scrubber"
        )


def checks(report, world):
    report.check("pages that decay on a standby", standby, world)
