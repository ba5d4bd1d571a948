"""`tools/long/roles`: what a switchover, a failover and a rejoin cost under 50 writers, many times, with the verdict of an
outside checker; PostgreSQL's promotion beside it."""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time

import postgres

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGETS = {
    # what: (p50, p99) in ms
    "switchover": (50, 250),
    "failover": (100, 500),
    "alone": (500, 500),
    "rejoin": (2000, 2000),
}


def baton(args, *words, timeout=900):
    return subprocess.run([args.baton, *map(str, words)], stdout=subprocess.PIPE, text=True, timeout=timeout, check=False)


def drill(args, name, nodes, times, *words):
    """One drill on a sandbox of its own: its report, with the exit code."""
    folder = os.path.join(args.folder, name)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"-- {name}: {times} times, {nodes} nodes", flush=True)
    begin = time.monotonic()
    up = baton(args, "sandbox", "up", "--dir", folder, "--nodes", nodes, "--json", timeout=120)
    if up.returncode != 0:
        sys.exit(f"sandbox up: exit {up.returncode}: {up.stdout}")
    try:
        done = baton(args, "drill", "--dir", folder, "--times", times, "--writers", args.writers, "--json", *words)
        report = json.loads(done.stdout)
    finally:
        baton(args, "sandbox", "down", "--dir", folder)
    report["exit"], report["seconds"] = done.returncode, round(time.monotonic() - begin, 1)
    if done.returncode == 0:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"   exit {done.returncode}; the nodes' logs are in {folder}")
    return report


def percentiles(values):
    ordered = sorted(values)
    at = lambda part: ordered[max(0, -(-len(ordered) * part // 100) - 1)]
    return {"p50": at(50), "p99": at(99), "max": ordered[-1]} if ordered else {"p50": 0, "p99": 0, "max": 0}


def row(what, times, gaps, target, lost):
    p50, p99, top = gaps["p50"], gaps["p99"], gaps["max"]
    word = "" if target is None else ("met" if p50 < target[0] and p99 < target[1] else "**missed**")
    goal = "" if target is None else f"{target[0]} / {target[1]}"
    return f"| {what} | {times} | {p50:.1f} | {p99:.1f} | {top:.1f} | {goal} | {word} | {lost} |"


def write(args, raw):
    lines = [
        "# Roles under load",
        "",
        f"{raw['date']}, {raw['machine']}. {args.writers} writers in one process beside the nodes, everything on loopback",
        f"and one disk. `tools/long/roles {args.switchovers} {args.failovers}` makes this page; raw data in `raw.json`.",
        f"{raw['note']}",
        "",
        "Times in ms. Targets are p50 / p99.",
        "",
        "| what | times | p50 | p99 | max | target | | lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    part = raw["switchovers"]
    lines.append(
        row("switchover: longest time without an acknowledged write", part["completed"], part["gap_ms"],
            TARGETS["switchover"], part["lost"])
    )
    part = raw["failovers"]
    done, lost = part["completed"], part["lost"]
    lines.append(
        row("failover after kill -9: command to the first acknowledged write", done, part["first_write_ms"],
            TARGETS["failover"], lost)
    )
    lines.append(row("failover: command to its own end", done, part["command_ms"], None, lost))
    lines.append(
        row("the killed node: started to streaming again, under load", done, part["rejoin_ms"], TARGETS["rejoin"], lost)
    )
    part = raw["alone"]
    lines.append(
        row("1+1, `failover --alone`: command to the first acknowledged write", part["completed"],
            part["first_write_ms"], TARGETS["alone"], part["lost"])
    )
    lines.append(
        row("1+1: the killed node, started to streaming again", part["completed"], part["rejoin_ms"],
            TARGETS["rejoin"], part["lost"])
    )
    copied = raw["failovers"]["pages_copied"] + raw["alone"]["pages_copied"]
    lines += ["", f"Pages copied by the nodes that came back: {copied}."]
    for name in ("switchovers", "failovers", "alone"):
        verdict = raw[name]["verdict"]
        lines.append(
            f"Checker of the {name}: {verdict['acknowledged']} writes acknowledged, {verdict['keys_read_back']} keys read"
            f" back, {len(verdict['violations'])} violations; {len(raw[name]['errors'])} runs failed;"
            f" {raw[name]['seconds']} s."
        )
    lines += ["", "## PostgreSQL beside it", ""]
    other = raw["postgres"]
    if isinstance(other, str):
        lines.append(other)
    else:
        rows = other["each"]
        disk = "the same disk" if other["folder_on_same_disk"] else "another disk than baton's"
        lines += [
            f"{other['version']}, 1 primary and 2 standbys, `ANY 1`, pgbench with {postgres.CLIENTS} clients, on {disk}.",
            "Each time the primary and its children get SIGKILL, a standby is promoted with `pg_ctl -w promote`, the other",
            "standby is pointed at it, the old primary comes back with `pg_rewind`. One probe per level knocks every",
            "millisecond. baton's first write always is on two nodes.",
            "",
            "| what | times | p50 | p99 | max |",
            "|---|---|---|---|---|",
        ]
        for what, key in [
            ("`pg_ctl promote` to the first commit on one node", "first_write_one_copy_ms"),
            ("`pg_ctl promote` to the first commit on two nodes", "first_write_two_copies_ms"),
            ("`pg_ctl -w promote` to its own end", "command_ms"),
            ("old primary: `pg_rewind` and start, to streaming again", "rejoin_ms"),
        ]:
            gaps = percentiles([line[key] for line in rows])
            lines.append(f"| {what} | {len(rows)} | {gaps['p50']:.1f} | {gaps['p99']:.1f} | {gaps['max']:.1f} |")
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "raw.json"), "w", encoding="utf-8") as file:
        json.dump(raw, file, indent=1)
        file.write("\n")
    with open(os.path.join(args.out, "report.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("switchovers", nargs="?", type=int, default=200)
    parser.add_argument("failovers", nargs="?", type=int, default=100)
    parser.add_argument("--alone", type=int, help="failovers of a pair (default: a tenth of the failovers)")
    parser.add_argument("--postgres", type=int, help="promotions (default: a tenth of the failovers)")
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--baton", default=os.path.join(ROOT, "target/release/baton"))
    parser.add_argument("--folder", default=os.path.join(ROOT, "target", "roles"))
    parser.add_argument("--out", default=os.path.join(ROOT, "perf", "runs", f"{today}-roles"))
    parser.add_argument("--note", default="", help="a sentence for the report, on what else the machine did")
    args = parser.parse_args()
    tenth = max(3, args.failovers // 10)
    os.makedirs(args.folder, exist_ok=True)
    raw = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.release()}, {os.cpu_count()} processors",
        "note": args.note,
        "load_before": os.getloadavg(),
        "switchovers": drill(args, "switchovers", 3, args.switchovers),
        "failovers": drill(args, "failovers", 3, args.failovers, "--kill"),
        "alone": drill(args, "alone", 2, tenth if args.alone is None else args.alone, "--kill", "--alone"),
    }
    print("-- PostgreSQL's promotions", flush=True)
    times = tenth if args.postgres is None else args.postgres
    raw["postgres"] = postgres.measure(times, args.folder, lambda text: print(text, flush=True)) if times else "not asked for"
    raw["load_after"] = os.getloadavg()
    write(args, raw)
    return max(raw[name]["exit"] for name in ("switchovers", "failovers", "alone"))


if __name__ == "__main__":
    sys.exit(main())
