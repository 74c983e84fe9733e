"""A shell in a guest: a small web server in it runs what it is sent, and is reached from the network's namespace.

``SCRIPT`` is the user data that starts it. Nothing of it is in the product.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from host import wait_for

if TYPE_CHECKING:
    from cloud import Guest

PORT = 81
SCRIPT = f"""#!/bin/sh
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/run <<'END'
#!/bin/sh
echo 'Content-Type: text/plain'
echo
head -c "$CONTENT_LENGTH" > /run/script.$$
sh /run/script.$$ 2>&1
echo "exit $?"
END
chmod +x /www/cgi-bin/run
httpd -p {PORT} -h /www
echo "shell is there"
"""


def wait_ready(guest: Guest) -> None:
    guest.host.wait_console(guest.uuid, "shell is there")


def sh(guest: Guest, script: str, *, timeout_s: float = 40.0) -> tuple[int, str]:
    """Run ``script`` in the guest; return its exit status and what it said.

    Asked from its network's namespace on its host, as the gateway would ask.
    """
    url = f"http://{guest.address}:{PORT}/cgi-bin/run"
    namespace = wait_for(lambda: _namespace(guest), what=f"a namespace of the network of {guest.name}")
    done = subprocess.run(
        [*("ip", "netns", "exec", namespace, "busybox", "timeout", str(int(timeout_s))),
         *("busybox", "wget", "-q", "-O", "-", f"--post-data={script}", url)],
        capture_output=True, text=True, timeout=timeout_s + 20, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"the shell of {guest.name} at {url} does not answer: {done.stderr}"
    said, _, status = done.stdout.rstrip().rpartition("exit ")
    return int(status), said


def succeeds(guest: Guest, script: str, *, timeout_s: float = 40.0) -> str:
    """Run ``script`` in the guest and return what it said; fail if it fails."""
    status, said = sh(guest, script, timeout_s=timeout_s)
    assert status == 0, f"{guest.name}: {script!r} ended with {status}: {said}"
    return said


def fails(guest: Guest, script: str, *, timeout_s: float = 40.0) -> str:
    status, said = sh(guest, script, timeout_s=timeout_s)
    assert status != 0, f"{guest.name}: {script!r} went well: {said}"
    return said


def _namespace(guest: Guest) -> str | None:
    """Return the namespace of the network that the guest's first interface is on."""
    bridge = guest.host.domain(guest.uuid).XMLDesc().split("<source bridge='ecb")[1].split("'")[0]
    name = f"ec-{bridge}-{guest.host.provider[:8]}"
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return name if name in listed.stdout.split() else None
