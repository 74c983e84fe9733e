"""``./dev bench``: what it costs, each figure a ratio or a difference against the raw way, in the same run.

Rounds of ours and of the raw way are interleaved, so that a machine that slows down slows both; the
medians are compared. Budgets are printed beside what was measured; none is enforced here.

The figures of one host need root, libvirt and QEMU; those of the scheduler need PostgreSQL; those of networks need root
and dnsmasq.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

import crew
import msgspec
import networks
import one_host
import plot
import scheduling
from figures import Figure, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    names = sorted([*one_host.FIGURES, *scheduling.FIGURES, *crew.FIGURES, *networks.FIGURES])
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--rounds", type=int, default=5, help="of the scheduler's and the networks' figures")
    parser.add_argument("--hosts", default="10,100,1000", help="how many hosts the scheduler has, from few to many")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the cost of a launch against hosts (SVG)")
    options = parser.parse_args()
    made: list[Figure] = []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))  # what is made goes, too
    with tempfile.TemporaryDirectory(prefix="ec-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        wanted = [which for which in one_host.FIGURES if options.only is None or which in options.only]
        if wanted:
            bench = one_host.OneHost(directory)
            bench.start()
            try:
                for which in wanted:
                    made += one_host.FIGURES[which](bench)
            finally:
                bench.stop()
        sizes = sorted(int(part) for part in options.hosts.split(","))
        curves: dict[str, dict[int, float]] = {}
        wanted = [which for which in scheduling.FIGURES if options.only is None or which in options.only]
        if wanted:
            with scheduling.Scheduling(directory, sizes, options.rounds) as measured:
                for which in wanted:
                    made += scheduling.FIGURES[which](measured)
                curves |= measured.curves
        wanted = [which for which in crew.FIGURES if options.only is None or which in options.only]
        if wanted:
            with crew.Crews(directory, sizes, options.rounds) as crews:
                for which in wanted:
                    made += crew.FIGURES[which](crews)
                curves |= crews.curves
        wanted = [which for which in networks.FIGURES if options.only is None or which in options.only]
        for which in wanted:
            made += networks.FIGURES[which](networks.Options(directory, sizes, options.rounds))
        if options.plot:
            options.plot.write_text(plot.draw(curves), encoding="utf-8")
    print(table(made))
    if options.json:
        options.json.write_text(json.dumps([msgspec.to_builtins(f) for f in made], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
