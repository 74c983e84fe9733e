"""Enrolling hosts at a real etcd: what is made is what is needed, twice is once, and it can be taken back."""

from __future__ import annotations

import contextlib
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from click.testing import CliRunner

from ecompute import access
from ecompute.cluster import config, keys, roles
from ecompute.cluster.config import Config, EtcdSettings
from ecompute.cluster.documents import Incarnation, Node, timestamp
from ecompute.cluster.errors import Conflict, InvalidInput, NotFound, NotPermitted
from ecompute.cluster.store import Put, Store, absent
from ecompute.dev.etcd import EtcdProcess, TlsFiles, start_etcd
from eschedule.cli.enrol import enrol as enrol_command
from eschedule.cli.settings import Settings
from eschedule.cloud.certificates import Authority, openssl
from eschedule.cloud.connection import Cloud
from eschedule.cloud.enrolment import Enrolled, Enrolment

PROVIDER = "5a4cbd31-2cf8-4b7b-a1a9-0a6f3bd0c8ee"
OTHER = "00000000-0000-0000-0000-00000000000b"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("authority") / "ca"
    Authority(directory)
    return directory


@pytest.fixture(scope="module")
def etcd(ca: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """An etcd with client certificates and authentication; root shows root's certificate."""
    directory = tmp_path_factory.mktemp("enrolled")
    key, request, cert = (directory / f"member.{kind}" for kind in ("key", "csr", "pem"))
    (directory / "extensions").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", key)
    openssl("req", "-new", "-key", key, "-subj", "/CN=member", "-out", request)
    openssl(
        *("x509", "-req", "-in", request, "-CA", ca / "ca.pem", "-CAkey", ca / "ca.key", "-set_serial", 7),
        *("-days", 1, "-extfile", directory / "extensions", "-out", cert),
    )
    Authority(ca).certify("root", directory / "root.pem", directory / "root.key")
    with start_etcd(directory / "etcd", tls=TlsFiles(ca / "ca.pem", cert, key), is_durable=False) as process:
        with Store(_shown(process, ca, directory / "root.pem")) as store:
            store.users.add("root")
            store.users.give("root", "root")
        _etcdctl(process, ca, directory, "auth", "enable")
        process.root = _shown(process, ca, directory / "root.pem")  # type: ignore[attr-defined]
        yield process


def _etcdctl(process: EtcdProcess, ca: Path, directory: Path, *words: str) -> None:
    files = ("--cacert", ca / "ca.pem", "--cert", directory / "root.pem", "--key", directory / "root.key")
    subprocess.run(
        ["etcdctl", "--endpoints", f"https://{process.endpoint}", *map(str, files), *words],
        check=True,
        capture_output=True,
        timeout=20,
    )


def _shown(process: EtcdProcess, ca: Path, cert: Path) -> EtcdSettings:
    return EtcdSettings(endpoints=(process.endpoint,), ca=ca / "ca.pem", cert=cert, key=cert.with_suffix(".key"))


@pytest.fixture
def root(etcd: EtcdProcess) -> Iterator[Cloud]:
    with Cloud(Config(etcd=etcd.root)) as cloud:  # type: ignore[attr-defined]
        yield cloud


@pytest.fixture
def enrol(root: Cloud, ca: Path, tmp_path: Path) -> Iterator[Callable[..., Enrolled]]:
    """Enrol a host with a certificate, unless told otherwise; it is revoked at the end."""
    names: set[str] = set()

    def make(name: str = "host-1", **how: object) -> Enrolled:
        names.add(name)
        wanted = {"out": tmp_path / name, "ca": ca, "provider": PROVIDER} | how
        return Enrolment(root).enrol(name, **wanted)  # type: ignore[arg-type]

    yield make
    for name in names:
        with contextlib.suppress(NotFound):
            Enrolment(root).revoke(name)


def settings_of(enrolled: Enrolled) -> Config:
    """Return what a host understands that was given what the enrolment says."""
    file = enrolled.directory / "compute.yaml"
    file.write_text(yaml.safe_dump(enrolled.settings))
    return config.load(file)


def name_of(key: str) -> Incarnation:
    return Incarnation(id=key, made_by="a test", made_at=timestamp(0))


def test_an_enrolled_host_writes_its_own_and_not_anothers(enrol: Callable[..., Enrolled]) -> None:
    enrolled = enrol()
    assert (enrolled.provider, enrolled.user, enrolled.upkeep_user) == (PROVIDER, "host-host-1", None)
    assert enrolled.files == ["ca.pem", "etcd.pem", "etcd.key"]
    host = settings_of(enrolled)
    assert (host.name, host.uuid, host.upkeep) == ("host-1", PROVIDER, None)
    with Store(host.etcd) as store:
        assert store.get(keys.INCARNATION, Incarnation) is not None
        assert all(store.users.may(grant) for grant in roles.host(PROVIDER))
        assert not any(store.users.may(grant) for grant in roles.host(OTHER) if OTHER in grant.key)
        key = keys.seen(PROVIDER, "u")
        store.commit([absent(key)], [Put(key, name_of(key))])
        with pytest.raises(NotPermitted, match=keys.seen(OTHER, "u")):
            store.commit([], [Put(keys.seen(OTHER, "u"), name_of("x"))])


def test_its_key_is_its_owners_alone_and_serves_for_clients_alone(enrol: Callable[..., Enrolled], ca: Path) -> None:
    out = enrol(has_password=True).directory
    for path in (out / "etcd.key", out / "etcd-password", ca / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    text = openssl("x509", "-in", out / "etcd.pem", "-noout", "-text")
    assert "TLS Web Client Authentication" in text
    assert "Server" not in text
    assert "CA:FALSE" in text
    assert not list(out.glob(".making-*"))


def test_to_enrol_again_changes_nothing_but_what_is_not_as_it_should_be(
    enrol: Callable[..., Enrolled], root: Cloud
) -> None:
    first = enrol()
    before = {path.name: path.read_bytes() for path in first.directory.iterdir()}
    role = roles.host_role(PROVIDER)
    root.store.users.set_role(role, (*roles.host(PROVIDER)[3:], roles.Grant(keys.INSTANCES, roles.Access.BOTH)))
    again = enrol(provider=None)
    assert again == first
    assert {path.name: path.read_bytes() for path in first.directory.iterdir()} == before
    assert root.store.users.grants_of(role) == set(roles.host(PROVIDER))
    assert root.store.users.roles_of("host-host-1") == {role}
    (first.directory / "etcd.key").unlink()
    enrol()
    with Store(settings_of(first).etcd) as store:
        assert store.status().revision


def test_a_password_is_another_way_in(enrol: Callable[..., Enrolled]) -> None:
    enrolled = enrol(has_password=True)
    with Store(settings_of(enrolled).etcd) as store:
        assert store.users.may(roles.Grant(keys.seen_by(PROVIDER), roles.Access.BOTH))
    password = (enrolled.directory / "etcd-password").read_text()
    assert len(password) > 30
    enrol(has_password=True)
    assert (enrolled.directory / "etcd-password").read_text() == password
    with Store(settings_of(enrolled).etcd) as store:
        assert store.users.may(roles.Grant(keys.seen_by(PROVIDER), roles.Access.BOTH))


def test_who_may_lead_writes_what_upkeep_writes(enrol: Callable[..., Enrolled]) -> None:
    host = settings_of(enrol(has_upkeep=True))
    assert host.upkeep is not None
    with Store(host.upkeep) as store:
        assert all(store.users.may(grant) for grant in roles.upkeep())
        assert not store.users.may(roles.Grant(keys.NODES, roles.Access.WRITE))
    with Store(host.etcd) as store:
        assert not store.users.may(roles.Grant(keys.LEAD, roles.Access.WRITE))


def test_check_says_whether_the_hosts_role_suffices(enrol: Callable[..., Enrolled], root: Cloud) -> None:
    host = settings_of(enrol(has_upkeep=True))
    assert [result.problem for result in access.checks(host)] == [None, None]
    root.store.users.set_role(roles.host_role(PROVIDER), roles.host(PROVIDER)[:-1])
    [first, _] = access.checks(host)
    assert first.problem is not None
    assert "may not write /booted/" in first.problem
    [operators, _] = access.checks(replace(root.settings, uuid=PROVIDER))
    assert "may more than a host needs" in operators.note


def test_a_revoked_host_is_nobody_and_may_come_back_as_the_same(enrol: Callable[..., Enrolled], root: Cloud) -> None:
    enrolled = enrol(has_upkeep=True)
    host = settings_of(enrolled)
    with Store(host.etcd) as store:
        assert store.keys(keys.seen_by(PROVIDER))
        revoked = Enrolment(root).revoke("host-1")
        assert (revoked.provider, revoked.users) == (PROVIDER, ["host-host-1", "upkeep-host-1"])
        with pytest.raises(NotPermitted):
            store.keys(keys.seen_by(PROVIDER))
        assert root.store.users.grants_of(roles.host_role(PROVIDER)) is None
        with pytest.raises(NotFound):
            Enrolment(root).revoke("host-1")
        enrol()
        assert store.keys(keys.seen_by(PROVIDER))


def test_a_host_that_has_registered_keeps_its_provider(enrol: Callable[..., Enrolled], root: Cloud) -> None:
    node = Node(
        provider=OTHER,
        name="host-9",
        underlay="192.0.2.9",
        underlay_mtu=1500,
        accelerator="tcg",
        hypervisor="none",
        version="0",
        reported_at=timestamp(0),
    )
    root.store.commit([], [Put(keys.node(OTHER), node)])
    assert enrol("host-9", provider=None).provider == OTHER
    with pytest.raises(Conflict, match=f"as provider {OTHER}"):
        enrol("host-9", provider=PROVIDER)


@pytest.mark.parametrize("name", ["", "root/", "a b", "-a", "x" * 57, "ünter", "a\nb"])
def test_a_name_that_no_certificate_can_have_is_refused(enrol: Callable[..., Enrolled], name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be the name"):
        enrol(name)


def test_a_host_called_root_is_not_root(enrol: Callable[..., Enrolled]) -> None:
    assert enrol("root").user == "host-root"


def test_a_host_cannot_enrol_another(enrol: Callable[..., Enrolled], tmp_path: Path, ca: Path) -> None:
    host = settings_of(enrol())
    with Cloud(host) as cloud, pytest.raises(NotPermitted, match="root alone"):
        Enrolment(cloud).enrol("host-2", out=tmp_path / "stolen", ca=ca, provider=OTHER)


def test_neither_an_authority_nor_a_password_is_said(enrol: Callable[..., Enrolled]) -> None:
    with pytest.raises(InvalidInput, match="--ca DIRECTORY"):
        enrol(ca=None)


def test_half_an_authority_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    with pytest.raises(InvalidInput, match=r"has no ca\.key"):
        Authority(tmp_path)
    assert not (tmp_path / "ca.key").exists()


def test_what_the_command_prints_is_the_hosts_configuration(
    enrol: Callable[..., Enrolled], etcd: EtcdProcess, ca: Path, tmp_path: Path
) -> None:
    enrol()  # for its end
    root: EtcdSettings = etcd.root  # type: ignore[attr-defined]
    roots = {"ca": str(root.ca), "cert": str(root.cert), "key": str(root.key), "endpoints": list(root.endpoints)}
    (tmp_path / "root.yaml").write_text(yaml.safe_dump({"etcd": roots}))
    out = tmp_path / "printed"
    done = CliRunner().invoke(
        enrol_command,
        ["host-1", "--ca", str(ca), "--out", str(out), "--upkeep"],
        obj=Settings(tmp_path / "root.yaml"),
        standalone_mode=False,
    )
    assert done.exception is None
    (out / "compute.yaml").write_text(done.stdout)
    host = config.load(out / "compute.yaml")
    assert UUID(host.uuid or "") == UUID(PROVIDER)
    assert host.etcd == replace(root, ca=out / "ca.pem", cert=out / "etcd.pem", key=out / "etcd.key")
    assert "copy ca.pem, etcd.pem, etcd.key, upkeep.pem, upkeep.key" in done.stderr
    with Store(host.etcd) as store:
        assert store.status().revision
