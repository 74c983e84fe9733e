"""One scheduler as a process: launches what it is told on stdin, a JSON object a line, and answers each.

``python racer.py CONFIG``; ``{"query": …, "namespace": …}`` gives ``{"uuid": …, "provider": …}`` or
``{"error": the class of the error, "text": …}``. It lives long, so it uses what it remembers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ecompute.cluster.errors import CloudError
from eschedule.cloud.connection import Cloud
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest


def main() -> None:
    cloud = Cloud.from_file(Path(sys.argv[1]), store_timeout_s=30)
    launcher = Launcher(cloud)
    cloud.store.status()
    cloud.placement.check()
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        try:
            launched = launcher.launch(LaunchRequest(image="http://images.example/small.qcow2", **json.loads(line)))
        except CloudError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        else:
            answer = {"uuid": launched.uuid, "provider": launched.provider}
        print(json.dumps(answer), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
