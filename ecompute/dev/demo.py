"""``./dev demo``: from nothing to a running guest and back, on the embedded cloud.

Everything is asked of the cloud through `eschedule`, as a user would; at the end it is looked at
from beside it: libvirt, the disk, the network, placement and etcd.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ecompute.cluster import config, keys
from ecompute.cluster.documents import Instance
from ecompute.cluster.errors import CloudError, StepFailed
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.dev.cloud import EmbeddedCloud
from ecompute.hypervisor.connection import LibvirtHypervisor
from ecompute.network.links import NetlinkLinks

DIRECTORY = Path("/var/lib/ecompute-demo")
NAME = "web-1"
BOOT_TIMEOUT_S = 120.0
BOOTED = "guest: booted"


class Demo:
    """The steps, each with its time."""

    def __init__(self, directory: Path) -> None:
        self._began = time.monotonic()
        self._directory = directory
        self._cloud = EmbeddedCloud(directory, say=lambda text: self.say(f"  {text}"))

    def say(self, text: str = "") -> None:
        sys.stdout.write(f"[{time.monotonic() - self._began:6.1f} s] {text}\n" if text else "\n")
        sys.stdout.flush()

    def run(self) -> None:
        """Do the main job.

        Raises:
            CloudError: a step did not end as it should.
        """
        self.say("the embedded cloud")
        self._cloud.start()
        try:
            key = self._key()
            self.say("scheduling a guest")
            launched = json.loads(
                self._eschedule("launch", "--name", NAME, "--ssh-key", str(key), "--wait", "-o", "json")
            )
            uuid, address = launched["uuid"], launched["addresses"][0]
            vnis = self._vnis(uuid)
            self.say(f"its domain runs on {launched['host']}; waiting until it has booted")
            console = self._booted()
            self.say(f"it has booted: {NAME} ({uuid}) at {address}")
            self._expect(uuid, address, key.read_text(encoding="ascii").split()[1], console)
            self.say("its events:")
            self._show(self._eschedule("events", NAME))
            self.say("the end of its serial console, where it says what it read from its config drive:")
            self._show("\n".join(console.splitlines()[-12:]))
            self.say("destroying it")
            self._eschedule("destroy", uuid)
            self._expect_nothing(uuid, vnis)
            self.say("nothing of it is left in libvirt, on disk, in the network, in placement, in etcd")
        finally:
            self.say("stopping what was started")
            self._cloud.stop()
        self.say("done")

    def _key(self) -> Path:
        """Return a public key that nobody has the private one of: it only has to be seen again."""
        import base64

        path = self._directory / "demo.pub"
        name = b"ssh-ed25519"
        blob = len(name).to_bytes(4, "big") + name + (32).to_bytes(4, "big") + os.urandom(32)
        path.write_text(f"ssh-ed25519 {base64.b64encode(blob).decode()} demo\n", encoding="ascii")
        return path

    def _eschedule(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "eschedule", "--config", str(self._cloud.config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise StepFailed(f"`eschedule {' '.join(arguments)}` failed: {done.stderr or done.stdout}")
        return done.stdout

    def _booted(self) -> str:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        console = ""
        while time.monotonic() < deadline:
            console = self._eschedule("console", "--log", NAME)
            if BOOTED in console:
                return console
            time.sleep(0.3)
        raise StepFailed(f"the guest has not booted within {BOOT_TIMEOUT_S:.0f} s; its console ends: {console[-300:]}")

    def _expect(self, uuid: str, address: str, key: str, console: str) -> None:
        for what in (f"guest: name {NAME}", f"guest: uuid {uuid}", f"guest: address {address}/", key):
            if what not in console:
                raise StepFailed(f"the guest did not say {what!r} on its console")

    def _vnis(self, uuid: str) -> set[int]:
        with Store(config.load(self._cloud.config).etcd) as store:
            found = store.get(keys.instance(uuid), Instance)
        return set() if found is None else {interface.vni for interface in found.value.spec.interfaces}

    def _expect_nothing(self, uuid: str, vnis: set[int]) -> None:
        settings = config.load(self._cloud.config)
        left = []
        hypervisor = LibvirtHypervisor(settings.libvirt_uri, "demo")
        try:
            if hypervisor.get(uuid) is not None:
                left.append("a domain in libvirt")
        finally:
            hypervisor.close()
        if (settings.state_dir / "instances" / uuid).exists():
            left.append("files")
        if NetlinkLinks().ours() & vnis:
            left.append("network devices")
        placement = Placement(settings.placement)
        if placement.allocations(uuid):
            left.append("an allocation in placement")
        store = Store(settings.etcd)
        try:
            if store.keys(keys.INSTANCES)[0] or store.keys(keys.HOSTS)[0] or store.keys(keys.INTENTS)[0]:
                left.append("keys in etcd")
        finally:
            store.close()
        if left:
            raise StepFailed(f"after destroying {uuid} there is still: {', '.join(left)}")

    def _show(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            sys.stdout.write(f"    {line}\n")


def main() -> int:
    try:
        Demo(DIRECTORY).run()
    except CloudError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
