"""One full look of the audit in a process of its own, for its memory and its requests.

``python audit_once.py CONFIG`` prints ``{"memory_mib": …, "before_mib": …, "requests": …, "seconds": …}``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from ecompute.cluster import config
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.cluster.upkeep.audit import Audit


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    settings = config.load(Path(sys.argv[1]))
    store, placement = Store(settings.etcd), Placement(settings.placement)
    store.status()
    placement.check()
    requests = 0

    def count(*_: object, **__: object) -> None:
        nonlocal requests
        requests += 1

    placement._transport._session.hooks["response"].append(count)
    before, began = peak_mib(), time.monotonic()
    released = Audit(store, placement, list, pause=time.sleep).run(is_full=True)
    took = time.monotonic() - began
    assert not released
    print(json.dumps({"memory_mib": peak_mib(), "before_mib": before, "requests": requests, "seconds": took}))
    store.close()


if __name__ == "__main__":
    main()
