"""What a launch costs, with few hosts and with many: against placement alone, and against itself."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from crowd import IMAGE, SHAPE, WRITERS, Crowd
from figures import Figure, figure, timed

from eschedule.cloud.explain import look
from eschedule.scheduler.request import LaunchRequest

LAUNCHES = 24
"""A round's launches, and raw claims."""
FEW = 8
"""Of what is slow."""
GANG = 50
SINGLE = 5
"""One after the other, for the time that one takes."""


class Scheduling:
    """Crowds of each size, and what was measured on them."""

    def __init__(self, directory: Path, sizes: list[int], rounds: int) -> None:
        self.rounds = rounds
        self.sizes = sizes
        self.crowds = {size: Crowd(directory / str(size), size) for size in sizes}
        self.curves: dict[str, dict[int, float]] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            for crowd in self.crowds.values():
                opening.enter_context(crowd)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def each_round(self, what: str) -> list[int]:
        def say(number: int) -> int:
            print(f"  {what}: round {number + 1} of {self.rounds}", file=sys.stderr)
            return number

        return [say(number) for number in range(self.rounds)]

    def launches(self) -> list[Figure]:
        """Launches a second, four at once, in one long-lived scheduler."""
        made = []
        for size, crowd in self.crowds.items():
            rates: dict[str, list[float]] = {way: [] for way in ("raw", "ours", "limited", "cold", "loop")}
            for number in range(self.rounds):
                print(f"  launches, {size} hosts: round {number + 1} of {self.rounds}", file=sys.stderr)
                rates["raw"].append(crowd.at_once(crowd.claim_raw, LAUNCHES))
                rates["ours"].append(crowd.at_once(crowd.launch, LAUNCHES))
                rates["limited"].append(crowd.at_once(crowd.launch_limited, LAUNCHES))
                rates["cold"].append(crowd.at_once(crowd.launch_cold, FEW))
                rates["loop"].append(crowd.at_once(crowd.loop_of_etcd_compute, FEW))
            big = size == max(self.sizes)
            name = f"launches, {WRITERS} at once, {size:,} hosts"
            made += [
                figure(f"{name} / raw PUT", rates["ours"], rates["raw"], "/s", "≥ 0.6" if big else "-"),
                figure(f"{name}, with a quota / raw PUT", rates["limited"], rates["raw"], "/s", "-"),
                figure(f"{name}, a new scheduler each / raw PUT", rates["cold"], rates["raw"], "/s", "-"),
                figure(f"{name} / etcd-compute's loop", rates["ours"], rates["loop"], "/s", "≥ 4" if big else "-"),
            ]
        return made

    def growth(self) -> list[Figure]:
        """The time of one launch, with few hosts and with many."""
        ways: dict[str, Callable[[Crowd], Callable[[int], None]]] = {
            "warm": lambda crowd: crowd.launch,
            "cold (one command)": lambda crowd: crowd.launch_command,
            "new scheduler": lambda crowd: crowd.launch_cold,
            "raw PUT": lambda crowd: crowd.claim_raw,
            "etcd-compute's loop": lambda crowd: crowd.loop_of_etcd_compute,
        }
        took: dict[str, dict[int, list[float]]] = {way: {size: [] for size in self.sizes} for way in ways}
        for number in range(self.rounds):
            print(f"  growth: round {number + 1} of {self.rounds}", file=sys.stderr)
            for _ in range(SINGLE):
                for size, crowd in self.crowds.items():
                    for way, pick in ways.items():
                        if way != "etcd-compute's loop" or _ == 0:
                            with timed(took[way][size]):
                                pick(crowd)(number)
        self.curves |= {
            way: {size: statistics.median(times) for size, times in by_size.items()} for way, by_size in took.items()
        }
        few, many = self.sizes[0], self.sizes[-1]
        return [
            figure(
                f"one launch, {way}, {many:,} hosts / {few:,}",
                by_size[many],
                by_size[few],
                "ms",
                "≤ 1.5" if way in ("warm", "cold (one command)") else "-",
            )
            for way, by_size in took.items()
        ]

    def gang(self) -> list[Figure]:
        """Many instances, all or none, against one raw ``POST /allocations`` of as many."""
        from eschedule.scheduler.gang import GangLauncher

        crowd = self.crowds[self.sizes[-1]]
        launcher = GangLauncher(crowd.cloud)
        requests = [LaunchRequest(query=SHAPE, image=IMAGE) for _ in range(GANG)]
        launcher.launch_all(requests)
        ours: list[float] = []
        raw: list[float] = []
        for _ in self.each_round("gang"):
            with timed(raw):
                crowd.post_raw(GANG)
            with timed(ours):
                launcher.launch_all(requests)
        rates = [[GANG * 1000 / ms for ms in times] for times in (ours, raw)]
        return [figure(f"gang of {GANG}, {crowd.count:,} hosts / one raw POST", *rates, "/s", "≥ 0.9")]

    def explain(self) -> list[Figure]:
        """Why a query has no host: requests to placement, and time."""
        query = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1&required=HW_CPU_X86_AMD_SVM"
        few, many = self.crowds[self.sizes[0]], self.crowds[self.sizes[-1]]
        counts = [
            float(crowd.requests_of(lambda crowd=crowd: look(crowd.cloud, query).explain())) for crowd in (many, few)
        ]
        took: list[list[float]] = [[], []]
        for _ in self.each_round("explain"):
            for crowd, into in zip((many, few), took, strict=True):
                with timed(into):
                    look(crowd.cloud, query).explain()
        name = f"explain, {many.count:,} hosts / {few.count:,}"
        return [
            figure(f"{name}: requests to placement", counts[:1], counts[1:], "requests", "a few"),
            figure(name, *took, "ms", "-"),
        ]

    def cost(self) -> list[Figure]:
        """What one launch costs etcd, with few hosts and with many."""
        cpu: dict[int, list[float]] = {size: [] for size in self.sizes}
        moved: dict[int, list[float]] = {size: [] for size in self.sizes}
        for _ in self.each_round("cost"):
            for size, crowd in self.crowds.items():
                crowd.launch()
                before = crowd.etcd_spent()
                crowd.at_once(crowd.launch, LAUNCHES, writers=1)
                after = crowd.etcd_spent()
                cpu[size].append((after[0] - before[0]) * 1000 / LAUNCHES)
                moved[size].append((after[1] - before[1]) / 1024 / LAUNCHES)
        few, many = self.sizes[0], self.sizes[-1]
        return [
            figure(f"a launch's CPU in etcd, {many:,} hosts / {few:,}", cpu[many], cpu[few], "ms", "~ 1"),
            figure(f"a launch's traffic with etcd, {many:,} hosts / {few:,}", moved[many], moved[few], "KiB", "~ 1"),
        ]

    def audit(self) -> list[Figure]:
        """A full look with ten allocations a host: memory, and requests a second."""
        crowd = self.crowds[self.sizes[-1]]
        crowd.fill(10 * crowd.count)
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("audit_once.py")), str(crowd.config_file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        name = f"audit, {crowd.count:,} hosts, {10 * crowd.count:,} allocations"
        return [
            figure(f"{name}: memory / limit", [found["memory_mib"]], [200.0], "MiB", "≤ 200 MiB"),
            figure(f"{name}: requests a second", [found["requests"] / found["seconds"]], [4.0], "/s", "a few"),
            figure(f"{name}: time", [found["seconds"]], [900.0], "s", "-"),
        ]


FIGURES: dict[str, Callable[[Scheduling], list[Figure]]] = {
    "launches": Scheduling.launches,
    "growth": Scheduling.growth,
    "gang": Scheduling.gang,
    "explain": Scheduling.explain,
    "cost": Scheduling.cost,
    "audit": Scheduling.audit,
}
