"""`tools/real`: baton as its users meet it - real processes, real clients, real disks."""

import argparse
import importlib
import os
import sys
import time

from harness import ROOT, Report, World, announce

CHAPTERS = {
    "clients": "clients that exist",
    "replies": "the same replies as redis-server",
    "badinput": "bad input",
    "badfiles": "bad files and folders",
    "operate": "roles, policies, configuration",
    "refusals": "commands that must be refused",
    "scripts": "stories told as transcripts",
    "decay": "pages that decay",
    "kills": "kill -9 under load",
    "powercuts": "power cuts under load",
    "stalls": "disks that hang or fail",
    "disk": "a full disk",
    "limits": "limits",
    "restart": "restart after kill -9 with a large log",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ci", action="store_true", help="the selection for CI (also the default)")
    parser.add_argument("--long", action="store_true", help="many more cycles, a large log, power cuts")
    parser.add_argument("--chapter", action="append", choices=CHAPTERS, help="only this one; may be repeated")
    parser.add_argument("--only", help="only checks whose name holds this text")
    parser.add_argument("--baton", default=os.environ.get("BATON", os.path.join(ROOT, "target/release/baton")))
    parser.add_argument("--folder", default=os.path.join(ROOT, "target", "real"))
    parser.add_argument("--base-port", type=int, default=23000)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    args = parser.parse_args()
    baton = os.path.abspath(args.baton)
    if not os.path.exists(baton):
        print(f"there is no {baton}: run `cargo build --release` first")
        print("0 passed, 1 failed, 0 skipped")
        return 1
    os.makedirs(args.folder, exist_ok=True)
    world = World(baton, os.path.abspath(args.folder), "long" if args.long else "ci", args.base_port, args.seed)
    report = Report(args.only)
    for name in args.chapter or CHAPTERS:
        announce(CHAPTERS[name])
        importlib.import_module(name).checks(report, world)
    print()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
