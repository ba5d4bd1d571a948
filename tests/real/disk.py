"""A disk that is full: a typed error for writes, everything else goes on, and writes resume by themselves."""

import os
import subprocess
import time

from harness import Broken, Error, Gone, Node, Skip, tool, wait_for, want

MIB = 1 << 20


class Disk:
    """A small ext4 of its own in a file."""

    def __init__(self, world, name, mib):
        if os.geteuid() != 0:
            raise Skip("a loop device needs root")
        for needed in ("mkfs.ext4", "mount", "umount", "losetup"):
            tool(needed)
        self.image = os.path.join(world.folder, f"{name}.img")
        self.place = os.path.join(world.folder, name)
        os.makedirs(self.place, exist_ok=True)
        with open(self.image, "wb") as file:
            file.truncate(mib * MIB)
        self.ballast = os.path.join(self.place, "ballast")

    def __enter__(self):
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", self.image], check=True, capture_output=True)
        done = subprocess.run(["mount", "-o", "loop", self.image, self.place], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            os.remove(self.image)
            raise Skip(f"no loop device here: {done.stderr.strip()}")
        return self

    def __exit__(self, *_):
        for _ in range(50):
            if subprocess.run(["umount", self.place], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        os.remove(self.image)

    def free(self):
        stat = os.statvfs(self.place)
        return stat.f_bavail * stat.f_frsize

    def fill(self, leave):
        """Takes all space but this much."""
        with open(self.ballast, "ab") as file:
            while self.free() > leave:
                try:
                    file.write(b"\xaa" * min(MIB, self.free() - leave))
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    break

    def empty(self):
        os.remove(self.ballast)


def small_node(world, disk, port):
    """One node with small segments on the disk."""
    node = Node(world.baton, os.path.join(disk.place, "node"), 1, port + 1)
    os.makedirs(node.folder)
    with open(node.path("baton.toml"), "w", encoding="utf-8") as file:
        file.write(
            f'cluster = "small"\nnode = 1\nclient_listen = "127.0.0.1:{node.port}"\n'
            f'peer_listen = "127.0.0.1:{node.peer_port}"\nmemory = "64MiB"\nsegment_bytes = "1MiB"\n'
            'log_retention = "4MiB"\nshards = 4\n'
        )
    node.run("init", ok=0)
    node.start("-M", "primary")
    wait_for(lambda: node.role() == ("Primary", "Normal"), 10, "the node on the small disk does not lead")
    return node


def write_until(node, numbers, stop, seconds):
    """Writes until `stop(reply)` or the time is up. Gives what was acknowledged and the last reply."""
    acked, reply = [], None
    end = time.monotonic() + seconds
    with node.client(timeout=20) as client:
        for number in numbers:
            reply = client.do("SET", f"full:{number}", b"%d:" % number + os.urandom(8000))
            if reply == b"OK":
                acked.append(number)
            if stop(reply) or time.monotonic() > end:
                break
    return acked, reply


def full(world, leave):
    with Disk(world, "smalldisk", 192) as disk:
        node = small_node(world, disk, world.next_base())
        try:
            pid = node.pid()
            disk.fill(leave)
            first, reply = write_until(node, range(1_000_000), lambda reply: isinstance(reply, Error), 60)
            want(isinstance(reply, Error), f"{len(first)} writes of 8 kB fit on a disk with {leave >> 20} MiB: nothing is refused")
            want(reply.word == "MISCONF" and "disk full" in reply, f"a full disk is answered with: {reply}")
            want(node.pid() == pid, "the node ended on a full disk")
            with node.client() as client:
                value = client.do("GET", f"full:{first[0]}")
                want(not isinstance(value, Error), f"reads do not go on: {value}")
                want(isinstance(client.do("SET", "x", "1"), Error), "a write is taken after one was refused")
            want("full" in (node.status() or {}).get("detail", ""), f"the status does not say it: {node.status()}")
            want(node.run("query").returncode == 0, "baton query on a full disk")
            verdict = node.run("cluster", "status", "--detail", ok=0).stdout
            want("cluster_state   : Degraded" in verdict and "disk full" in verdict, f"cluster status on a full disk: {verdict}")
            time.sleep(1.5)
            want(node.alive() and node.pid() == pid, f"the node ended on a full disk: {node.log()[-500:]}")
            # A restart needs no room either: reads and the admin socket are back, writes are refused.
            node.kill()
            node.start("-M", "primary")
            wait_for(lambda: node.role() == ("Primary", "Normal"), 15, "no primary after a restart on a full disk")
            with node.client() as client:
                value = client.do("GET", f"full:{first[0]}")
                want(value and value.startswith(b"%d:" % first[0]), f"after a restart on a full disk: {value and value[:60]}")
            disk.empty()

            def resumed():
                with node.client() as client:
                    return client.do("SET", "resumed", "1") == b"OK"

            wait_for(resumed, 15, lambda: f"writes do not resume: {node.status()}")
            second, _ = write_until(node, range(1_000_000, 1_000_200), lambda reply: reply != b"OK", 20)
            want(len(second) == 200, f"only {len(second)} of 200 writes after space was freed")
            # All of it is there, and after a crash too.
            for crash in (False, True):
                if crash:
                    node.kill()
                    node.start("-M", "primary")
                    wait_for(lambda: node.role() == ("Primary", "Normal"), 15, "no primary after the crash")
                with node.client() as client:
                    for number in [*first, *second]:
                        value = client.do("GET", f"full:{number}")
                        want(value and value.startswith(b"%d:" % number), f"full:{number} was acknowledged and is {value and value[:40]}")
            want("panicked" not in node.log(), "the node panicked")
            return f"{len(first)} writes until full, {len(second)} after space was freed"
        except (Broken, Gone) as error:
            keep = os.path.join(world.folder, "smalldisk.log")
            with open(keep, "w", encoding="utf-8") as file:
                file.write(node.log())
            raise Broken(f"{error} (log kept in {keep})") from error
        finally:
            if node.alive():
                node.kill()


def checks(report, world):
    report.check("full disk, noticed ahead", full, world, 24 * MIB)
    report.check("full disk, to the last byte", full, world, 0)
