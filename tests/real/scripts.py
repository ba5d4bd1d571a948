"""Stories told as transcripts: `tests/scripts/*.txt`, each on a fresh sandbox of three nodes.

    $ baton switchover -D 1 --to 2      a command; `-D N` means node N. What it says follows, made comparable (below).
    ~ status 2                          the same, asked until the answer is the expected one
    ! baton failover -D 2               what it says is evidence of this one run: only the exit code counts
    exit 4                              the exit code, when it is not 0

Beside `baton` there are: `status N` (the verdict and every node's row, as node N shows them), `kill N` (kill -9), `start N`
(the process alone, nothing waited for), `freeze N`, `thaw N`, `set N KEY VALUE` and `get N KEY` (a client on node N),
`metric N NAME`, `both` (which nodes acknowledge a write at this moment). Identities, positions, times and paths are replaced
by words. BATON_SCRIPTS_WRITE=1 writes the transcripts anew: read the difference before keeping it.
"""

import glob
import os
import re
import shlex
import signal
import time

from harness import ROOT, Broken, Error, Gone, Sandbox, run, want

FOLDER = os.path.join(ROOT, "tests", "scripts")
PATIENCE = 25


class Story:
    def __init__(self, world, sandbox):
        self.world, self.sandbox = world, sandbox

    def node(self, word):
        return self.sandbox.node(int(word))

    def comparable(self, text):
        text = text.replace(self.sandbox.folder, "LAB")
        text = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
        text = re.sub(r"\b(\d+)-[0-9a-f]{8}\b", r"\1-ID", text)
        text = re.sub(r"\b[0-9A-F]+/[0-9A-F]{2,}\b", "LSN", text)
        text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
        text = re.sub(r"\bpid \d+", "pid N", text)
        text = re.sub(r"\b\d+(\.\d+)? (ms|s|bytes)\b", r"N \2", text)
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def baton(self, words):
        given = []
        for before, word in zip(["", *words], words):
            if before == "-D":
                word = self.node(word).folder
            given.append(word.replace("LAB", self.sandbox.folder))
        done = run(self.world.baton, *given, timeout=90)
        # What passes by on the way is told on standard error; only a complaint is part of the story.
        lines = self.comparable(done.stdout + (done.stderr if done.returncode else ""))
        return lines + ([f"exit {done.returncode}"] if done.returncode else [])

    def status(self, number):
        done = self.node(number).run("cluster", "status", "--detail")
        if done.returncode:
            return self.comparable(done.stderr) + [f"exit {done.returncode}"]
        verdict = re.search(r"cluster_state\s*:\s*(\S+)", done.stdout).group(1)
        rows = re.findall(r"^(\d+) +\S+ +\S+ +\d+ +\d+ +(?:\S+ +)??([PSC])  (.*)$", done.stdout, re.M)
        return [verdict] + [f"{node} {set_as} {' '.join(rest.split())}" for node, set_as, rest in rows]

    def client(self, number, *words):
        try:
            with self.node(number).client(timeout=4) as client:
                reply = client.do(*words)
        except (OSError, Gone):
            return "no answer"
        if isinstance(reply, Error):
            return self.comparable(reply)[0]
        return reply.decode() if isinstance(reply, bytes) else str(reply)

    def do(self, command):
        verb, *words = shlex.split(command)
        if verb == "baton":
            return self.baton(words)
        if verb == "status":
            return self.status(*words)
        if verb in ("set", "get"):
            return [self.client(words[0], verb.upper(), *words[1:])]
        if verb == "both":
            answers = [(node.id, self.client(node.id, "SET", "both", "x")) for node in self.sandbox.nodes]
            yes = [str(number) for number, answer in answers if answer == "OK"]
            want(len(yes) < 2, f"nodes {yes} both acknowledge a write")
            return [f"acknowledged by: {' '.join(yes) or 'nobody'}"]
        if verb == "metric":
            text = self.node(words[0]).ask(verb="metrics")["result"]["text"]
            return [line for line in text.splitlines() if line.startswith(words[1] + " ")]
        node = self.node(words[0])
        if verb == "kill":
            node.kill()
        elif verb == "start":
            node.launch()
        elif verb in ("freeze", "thaw"):
            os.kill(node.pid(), signal.SIGSTOP if verb == "freeze" else signal.SIGCONT)
        else:
            raise Broken(f"no such command: {command}")
        return []

    def until(self, command, expected):
        end = time.monotonic() + PATIENCE
        while True:
            told = self.do(command)
            if told == expected or time.monotonic() > end:
                return told
            time.sleep(0.05)


def steps(text):
    """[(comment lines, mark, command, expected lines)]"""
    found, comment = [], []
    for line in text.splitlines():
        if line[:2] in ("$ ", "~ ", "! "):
            found.append((comment, line[0], line[2:], []))
            comment = []
        elif line.startswith("#") or not line.strip():
            comment.append(line)
        else:
            found[-1][3].append(line)
    return found, comment


def play(world, path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    script, rest = steps(text)
    rewrite = bool(os.environ.get("BATON_SCRIPTS_WRITE"))
    told = []
    with Sandbox(world, "script", 3) as sandbox:
        story = Story(world, sandbox)
        for comment, mark, command, expected in script:
            if mark == "~" and rewrite and not expected:
                time.sleep(6)
            answer = story.until(command, expected) if mark == "~" else story.do(command)
            if mark == "!":
                answer = [line for line in answer if line.startswith("exit ")]
            told += [*comment, f"{mark} {command}", *answer]
            if not rewrite:
                shown = "\n       ".join(["expected:", *expected, "told:", *answer])
                want(answer == expected, f"{os.path.basename(path)}: {mark} {command}\n       {shown}")
    if rewrite:
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join([*told, *rest]) + "\n")
    return f"{len(script)} steps"


def checks(report, world):
    for path in sorted(glob.glob(os.path.join(FOLDER, "*.txt"))):
        name = os.path.splitext(os.path.basename(path))[0].replace("-", " ")
        report.check(f"story: {name}", play, world, path)
