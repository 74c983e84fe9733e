"""A cloud whose etcd asks who everybody is: client certificates, authentication on, a role a host.

As `cloud.Cluster`, but that hosts are enrolled by `eschedule host enrol`, as INSTALL.md says it; the
first of them may lead, the others may not. `eschedule` has a user with the role of tools; root has a
configuration of its own, ``cluster.root``.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import yaml
from cloud import Cluster, Host

from ecompute.cluster import config, roles
from ecompute.cluster.store import Store
from ecompute.dev.etcd import EtcdProcess, TlsFiles, start_etcd
from eschedule.cloud.certificates import Authority, openssl, private

LEADS = "host-1"


class SecuredCluster(Cluster):
    """See this module's head."""

    def start_etcd(self) -> EtcdProcess:
        self.ca = self.directory / "ca"
        self._authority = Authority(self.ca)
        files = private(self.directory / "certificates")
        server = TlsFiles(self._authority.cert, files / "server.pem", files / "server.key")
        extensions = files / "extensions"
        extensions.write_text(f"subjectAltName=IP:{self.address}\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", server.key)
        openssl("req", "-new", "-key", server.key, "-subj", f"/CN={self.address}", "-out", files / "server.csr")
        openssl(
            *("x509", "-req", "-in", files / "server.csr", "-CA", self.ca / "ca.pem", "-CAkey", self.ca / "ca.key"),
            *("-set_serial", 7, "-days", 1, "-extfile", extensions, "-out", server.cert),
        )
        return start_etcd(self.directory / "etcd", host=self.address, tls=server, is_durable=False)

    def etcd_settings(self) -> dict[str, Any]:
        self.root = self.directory / "root.yaml"
        said = {"etcd": self._shown("root"), "placement": {"endpoint": self.placement.endpoint}}
        self.root.write_text(yaml.safe_dump(said))
        with Store(config.load(self.root).etcd) as store:
            store.users.set_role(roles.TOOL, roles.tool())
            for user, role in (("root", "root"), ("operator", roles.TOOL)):
                store.users.add(user)
                store.users.give(user, role)
        shown = said["etcd"]
        files = ("--cacert", shown["ca"], "--cert", shown["cert"], "--key", shown["key"])
        subprocess.run(
            ["etcdctl", "--endpoints", f"https://{self.etcd.endpoint}", *files, "auth", "enable"],
            check=True,
            capture_output=True,
            timeout=20,
        )
        return self._shown("operator")

    def host_settings(self, name: str) -> dict[str, Any]:
        out = self.directory / "enrolled" / name
        out.parent.mkdir(exist_ok=True)
        enrolled = subprocess.run(
            [
                *(sys.executable, "-m", "eschedule", "--config", self.root),
                *("host", "enrol", name, "--ca", self.ca, "--out", out, *(["--upkeep"] if name == LEADS else [])),
            ],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        said = yaml.safe_load(enrolled.stdout)
        for section in ("etcd", "upkeep"):
            for key in ("ca", "cert", "key"):
                if key in said.get(section, {}):
                    said[section][key] = str(out / said[section][key])
        return {**self.settings, **said}

    def add_host(self, name: str) -> Host:
        host = super().add_host(name)
        host.state.mkdir(mode=0o711)
        # Where a test looks for it; the daemon has it from its configuration.
        (host.state / "provider-uuid").write_text(f"{config.load(host.directory / 'compute.yaml').uuid}\n")
        return host

    def _shown(self, user: str) -> dict[str, Any]:
        files = self.directory / "certificates"
        self._authority.certify(user, files / f"{user}.pem", files / f"{user}.key")
        return {
            "endpoints": [self.etcd.endpoint],
            "ca": str(self.ca / "ca.pem"),
            "cert": str(files / f"{user}.pem"),
            "key": str(files / f"{user}.key"),
        }
