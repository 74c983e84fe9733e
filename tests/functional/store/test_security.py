"""TLS with client certificates, and users with passwords; certificates are made here."""

from __future__ import annotations

import random
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import Name
from ecompute.cluster.errors import InvalidInput, NotPermitted, Refused, StoreUnavailable
from ecompute.cluster.roles import Access, Grant
from ecompute.cluster.store import Put, SharedStore, Store, absent
from ecompute.dev.etcd import EtcdProcess, TlsFiles, start_etcd
from ecompute.heartbeat import Heartbeat


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


def make_authority(directory: Path, name: str) -> Path:
    key, cert = directory / f"{name}.key", directory / f"{name}.pem"
    openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
    openssl("req", "-x509", "-new", "-key", key, "-subj", f"/CN={name}", "-days", "1", "-out", cert)
    return cert


def make_files(directory: Path, ca: Path, name: str) -> TlsFiles:
    key, request, cert = (directory / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
    openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
    openssl(
        *("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca.with_suffix(".key"), "-CAcreateserial"),
        *("-days", "1", "-extfile", extensions, "-out", cert),
    )
    return TlsFiles(ca, cert, key)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    directory = tmp_path_factory.mktemp("tls")
    return make_files(directory, make_authority(directory, "ca"), "member")


@pytest.fixture(scope="module")
def secured(tls: TlsFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """An etcd with TLS and users, whose tokens live for a second."""
    directory = tmp_path_factory.mktemp("secured")
    with start_etcd(directory, tls=tls, is_durable=False, options=["--auth-token-ttl", "1"]) as process:

        def control(*arguments: str) -> None:
            subprocess.run(
                [
                    *("etcdctl", "--endpoints", f"https://{process.endpoint}", "--cacert", tls.ca),
                    *("--cert", tls.cert, "--key", tls.key, *arguments),
                ],
                check=True,
                capture_output=True,
                timeout=20,
            )

        control("user", "add", "root:root-password")
        control("user", "grant-role", "root", "root")
        control("role", "add", "host")
        control("role", "grant-permission", "host", "--prefix=true", "readwrite", "/mine/")
        control("role", "grant-permission", "host", "--prefix=true", "read", "/cluster/")
        control("user", "add", "host:s3cret")
        control("user", "grant-role", "host", "host")
        control("auth", "enable")
        yield process


@pytest.fixture
def settings(secured: EtcdProcess, tls: TlsFiles, tmp_path: Path) -> EtcdSettings:
    password = tmp_path / "password"
    password.write_text("s3cret\n")
    return EtcdSettings(
        endpoints=(secured.endpoint,), ca=tls.ca, cert=tls.cert, key=tls.key, user="host", password_file=password
    )


def name() -> Name:
    return Name(uuid="u", name="x")


def test_a_user_reads_writes_and_watches_what_is_its_own(settings: EtcdSettings, eventually) -> None:
    with Store(settings) as store:
        keys: list[str] = []
        follow = store.watcher().follow("/mine/", Name, lambda change: keys.append(change.key))
        assert follow.wait_ready(5)
        store.commit([], [Put("/mine/a", name())])
        eventually(lambda: "/mine/a" in keys)
        assert store.get("/mine/a", Name) is not None
        assert store.status().revision


def test_what_is_not_its_own_is_refused_and_its_watch_does_not_end_the_others(
    settings: EtcdSettings, eventually
) -> None:
    with Store(settings) as store:
        with pytest.raises(NotPermitted, match="does not let user host read /other/a"):
            store.get("/other/a", Name)
        with pytest.raises(NotPermitted, match="user host write /other/a") as caught:
            store.commit([absent("/mine/c")], [Put("/mine/c", name()), Put("/other/a", name())])
        assert caught.value.keys == ("/other/a",)
        assert store.get("/mine/c", Name) is None
        watcher = store.watcher()
        other = watcher.follow("/other/", Name, lambda change: None)
        mine = watcher.follow("/mine/", Name, lambda change: None)
        assert mine.wait_ready(5)
        assert not other.is_current


def test_a_part_of_a_store_says_who_may_not_write(settings: EtcdSettings) -> None:
    with Store(settings) as whole, SharedStore(whole) as store:
        with pytest.raises(NotPermitted, match="user host write /other/a"):
            store.commit([], [Put("/other/a", name())])
        assert not store.users.may(Grant("/other/", Access.BOTH))


def test_a_heartbeat_that_may_not_be_written_leaves_no_lease(settings: EtcdSettings) -> None:
    with Store(settings) as store:
        heartbeat = Heartbeat(store, "00000000-0000-0000-0000-00000000000a", "host-a", rng=random.Random(1))
        with pytest.raises(NotPermitted, match="/alive/"):
            heartbeat._take()
        assert store._leases._leases == []


def test_a_token_is_fetched_again_when_it_has_expired(settings: EtcdSettings, eventually) -> None:
    with Store(settings) as store:
        lease = store.lease(3, on_lost=lambda: None)
        store.commit([], [Put("/mine/leased", name(), lease=lease.id)])
        member = store._members.current
        first = member._token
        assert first
        # etcd ends a token only some time after it was last used
        eventually(lambda: _is_refused(store, first), timeout_s=10)
        assert store.get("/mine/leased", Name) is not None
        assert member._token != first
        lease.revoke()


def _is_refused(store: Store, token: str) -> bool:
    """Whether etcd refuses ``token``; asked without the store's own renewal, and seldom."""
    import threading

    import grpc

    from ecompute.cluster.store.etcd3_loader import rpc

    threading.Event().wait(2.2)
    try:
        store._members.current.client.kvstub.Range(
            rpc.RangeRequest(key=b"/mine/a"), timeout=2, metadata=(("token", token),)
        )
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


def test_everything_goes_on_after_a_restart_that_forgets_all_tokens(
    settings: EtcdSettings, secured: EtcdProcess, eventually
) -> None:
    with Store(settings) as store:
        keys: list[str] = []
        follow = store.watcher().follow("/mine/", Name, lambda change: keys.append(change.key))
        lease = store.lease(5, on_lost=lambda: None)
        assert follow.wait_ready(5)
        secured.kill()
        secured.start()
        eventually(lambda: follow.is_current, timeout_s=10)
        store.commit([], [Put("/mine/b", name())])
        eventually(lambda: "/mine/b" in keys)
        assert lease.is_held


def test_a_wrong_password_says_so_and_is_not_shown(settings: EtcdSettings, tmp_path: Path) -> None:
    assert settings.password_file is not None
    settings.password_file.write_text("wr0ng-s3cret")
    with Store(settings, timeout_s=2) as store:
        with pytest.raises(StoreUnavailable, match="authentication failed") as caught:
            store.get("/mine/a", Name)
        assert "wr0ng" not in str(caught.value)
        settings.password_file.write_text("s3cret")
        store.get("/mine/a", Name)
    missing = replace(settings, password_file=tmp_path / "none")
    with Store(missing) as store, pytest.raises(InvalidInput, match="password file"):
        store.get("/mine/a", Name)


def test_a_server_signed_by_another_authority_is_refused(settings: EtcdSettings, tmp_path: Path) -> None:
    stranger = replace(settings, ca=make_authority(tmp_path, "stranger"))
    with Store(stranger, timeout_s=3) as store, pytest.raises(StoreUnavailable):
        store.get("/mine/a", Name)


def test_a_client_without_certificate_is_refused(settings: EtcdSettings) -> None:
    with Store(replace(settings, cert=None, key=None), timeout_s=3) as store, pytest.raises(StoreUnavailable):
        store.get("/mine/a", Name)


def test_a_certificate_that_is_no_users_may_nothing(settings: EtcdSettings) -> None:
    with Store(replace(settings, user=None, password_file=None)) as store:
        with pytest.raises(NotPermitted, match=r"the holder of .*member\.pem read /mine/a"):
            store.get("/mine/a", Name)
        assert store.users.is_enabled()


def test_who_shows_nothing_is_told_what_to_show(tmp_path: Path) -> None:
    with start_etcd(tmp_path / "plain", is_durable=False) as process:
        plain = EtcdSettings(endpoints=(process.endpoint,))
        with Store(plain) as store:
            assert not store.users.is_enabled()
            store.users.add("root", "root-password")
            store.users.give("root", "root")
            command = ["etcdctl", "--endpoints", process.endpoint, "--user", "root:root-password", "auth", "enable"]
            subprocess.run(command, check=True, capture_output=True, timeout=20)
            with pytest.raises(Refused, match="shown neither a certificate nor a user"):
                store.get("/mine/a", Name)
            assert store.users.is_enabled()


# --- users and roles -----------------------------------------------------------------------------

ROLE = (Grant("/cluster/", Access.READ), Grant("/hers/", Access.BOTH), Grant("/hers-alone", Access.WRITE))


@pytest.fixture
def root(settings: EtcdSettings, tmp_path: Path) -> Iterator[Store]:
    password = tmp_path / "root-password"
    password.write_text("root-password")
    with Store(replace(settings, user="root", password_file=password)) as store:
        yield store


def test_a_role_becomes_what_it_is_to_be_however_often_it_is_drawn(root: Store) -> None:
    users = root.users
    assert users.grants_of("drawn") is None
    users.set_role("drawn", (Grant("/else/", Access.BOTH), Grant("/hers/", Access.READ)))
    for _ in range(2):
        users.set_role("drawn", ROLE)
        assert users.grants_of("drawn") == set(ROLE)
    users.delete_role("drawn")
    users.delete_role("drawn")
    assert users.grants_of("drawn") is None


def test_a_user_is_made_given_a_role_and_taken_back(root: Store, settings: EtcdSettings, tmp_path: Path) -> None:
    users = root.users
    users.set_role("hers", ROLE)
    for _ in range(2):
        users.add("she", "hers")
        users.give("she", "hers")
    assert users.roles_of("she") == {"hers"}
    password = tmp_path / "her-password"
    password.write_text("hers")
    with Store(replace(settings, user="she", password_file=password), timeout_s=2) as store:
        store.commit([absent("/hers/a")], [Put("/hers/a", name())])
        assert [store.users.may(grant) for grant in ROLE] == [True, True, True]
        assert not store.users.may(Grant("/mine/", Access.READ))
        assert not store.users.may(Grant("/hers-alone", Access.READ))
        assert not store.users.may(Grant("/hers", Access.WRITE))
        with pytest.raises(NotPermitted):
            store.users.add("another", "x")
        for _ in range(2):
            users.delete("she")
        with pytest.raises((StoreUnavailable, NotPermitted)):
            store.get("/hers/a", Name)
    assert users.roles_of("she") is None


def test_changes_of_users_fail_no_call_of_others(root: Store, settings: EtcdSettings) -> None:
    done = threading.Event()
    failed: list[Exception] = []

    def work() -> None:
        with Store(settings) as store:
            while not done.is_set():
                try:
                    store.commit([], [Put("/mine/busy", name())])
                except Exception as error:
                    failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for number in range(40):
        root.users.set_role("changing", (Grant(f"/changing/{number}/", Access.BOTH),))
    done.set()
    thread.join(10)
    assert not failed


def test_a_user_without_a_password_is_who_has_the_certificate(
    root: Store, settings: EtcdSettings, tls: TlsFiles, tmp_path: Path
) -> None:
    root.users.set_role("hers", ROLE)
    root.users.add("certified")
    root.users.give("certified", "hers")
    files = make_files(tmp_path, tls.ca, "certified")
    with Store(replace(settings, cert=files.cert, key=files.key, user=None, password_file=None)) as store:
        store.commit([], [Put("/hers/b", name())])
        (tmp_path / "empty").write_text("")
        by_password = replace(settings, user="certified", password_file=tmp_path / "empty")
        with Store(by_password, timeout_s=2) as other, pytest.raises(StoreUnavailable):
            other.get("/hers/b", Name)
        root.users.delete("certified")
        with pytest.raises(NotPermitted):
            store.commit([], [Put("/hers/b", name())])


def test_a_missing_certificate_file_is_named(settings: EtcdSettings, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.pem"):
        Store(replace(settings, ca=tmp_path / "none.pem"))
