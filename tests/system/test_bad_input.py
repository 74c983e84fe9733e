"""What cannot be meant or done: one line that says why and what to do, exit status 1 or 2, nothing left behind."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from cloud import Cluster, Result
from images import ImageServer

SHAPE = "MEMORY_MB:96,DISK_GB:1"


@pytest.fixture(scope="module", autouse=True)
def slow_launch(cloud_base: Path) -> Iterator[tuple[Cluster, subprocess.Popen[str]]]:
    """A launch with an image that never comes, on a cloud of its own beside the tests of this module.

    It is tried three times, each until it has stalled for half a minute.
    """
    with Cluster(cloud_base, hosts=1) as cluster, closing(ImageServer(cluster.image_address, cluster.image)) as images:
        options = ("--name", "slow", "--image", images.dripping(), "--wait", "-o", "json")
        with cluster.eschedule_running("launch", cluster.query(), *options) as process:
            yield cluster, process


def refused(result: Result, *words: str) -> str:
    """Check that ``result`` is a refusal in one line which has ``words``; return the line."""
    assert result.status in (1, 2), result
    assert result.stdout == "", result
    line = result.stderr.removesuffix("\n")
    assert line and "\n" not in line and line.startswith("error: "), result
    assert "Traceback" not in line
    assert ";" in line, f"it does not say what to do: {line}"
    for word in words:
        assert word in line, f"{word!r} is not in {line!r}"
    return line


# --- refused before anything is claimed ----------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("resources", "="),
        ("resources=", "CLASS:AMOUNT"),
        ("resources=VCPU", "CLASS:AMOUNT"),
        (f"resources=VCPU:1,{SHAPE}&&", "empty"),
        (f"resources=VCPU:1,{SHAPE}&requires=A", "required"),
        (f"resources=VCPU:1,{SHAPE}&in_tree=here", "uuid"),
        (f"resources=vcpu:1,{SHAPE}", "VCPU"),
        (f"resources=VCPU:1,{SHAPE},NO_SUCH_CLASS:1", "NO_SUCH_CLASS"),
        (f"resources=VCPU:0,{SHAPE}", "zero"),
        (f"resources=VCPU:-1,{SHAPE}", "whole number"),
        (f"resources=VCPU:1.5,{SHAPE}", "whole number"),
        (f"resources=VCPU:{10**30},{SHAPE}", "at most"),
        ("resources=VCPU:1,MEMORY_MB:96", "DISK_GB"),
        (f"resources=VCPU:1,{SHAPE}&required=%zz", "encoded"),
    ],
)
def test_a_query_that_cannot_be_meant(cluster: Cluster, query: str, word: str) -> None:
    refused(cluster.eschedule("launch", query, "--wait", check=False), word)
    if "=" in query:
        classic = cluster.eschedule(query, check=False)
        assert (classic.status, classic.stderr) == (1, "")
        assert classic.stdout.startswith(f"{query}\nFAIL: ")
        assert len(classic.stdout.splitlines()) == 2
        assert word in classic.stdout
    assert not cluster.instances()


@pytest.mark.parametrize("option", ["--cpus", "--memory", "--disk"])
@pytest.mark.parametrize("amount", ["0", "-1", str(10**30), "many"])
def test_an_amount_that_cannot_be(cluster: Cluster, option: str, amount: str) -> None:
    refused(cluster.eschedule("launch", option, amount, check=False))
    assert not cluster.instances()


def test_more_than_any_host_has(cluster: Cluster) -> None:
    refused(cluster.eschedule("launch", f"resources=VCPU:1000,{SHAPE}", check=False), "VCPU:1000")
    assert not cluster.instances()


@pytest.mark.parametrize("name", ["a/b", "/", "../../etc", "a b", "", "x" * 64, "-a", "</domain>", "a\nb", "ä"])
def test_a_name_that_cannot_be(cluster: Cluster, name: str) -> None:
    refused(cluster.eschedule("launch", cluster.query(), "--name", name, check=False), "name")
    assert not cluster.instances()


@pytest.mark.parametrize("namespace", ["a/b", "", "x" * 64, "a\nb"])
def test_a_namespace_that_cannot_be(cluster: Cluster, namespace: str) -> None:
    refused(cluster.eschedule("--namespace", namespace, "launch", cluster.query(), check=False), "namespace")
    assert not cluster.instances()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"#!/bin/sh\necho \0\n", "NUL"),
        (b"#" * (64 * 1024 + 1), "65536"),
        (b"\xff\xfe", "UTF-8"),
    ],
    ids=["nul", "too-long", "no-text"],
)
def test_user_data_that_cannot_be(cluster: Cluster, tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "user-data"
    path.write_bytes(data)
    refused(cluster.eschedule("launch", cluster.query(), "--user-data", path, check=False), word)
    refused(cluster.eschedule("launch", cluster.query(), "--user-data", "-", stdin=data, check=False), word)
    refused(cluster.eschedule("launch", cluster.query(), "--user-data", tmp_path / "none", check=False), "none")
    assert not cluster.instances()


@pytest.mark.parametrize(
    "image", ["ftp://somewhere/image", "image.qcow2", "http://", "http://u:p@h/i", "file:///etc/passwd", "http://h/ i"]
)
def test_an_image_url_that_cannot_be(cluster: Cluster, image: str) -> None:
    refused(cluster.eschedule("launch", cluster.query(), "--image", image, check=False), "image")
    assert not cluster.instances()


def test_nothing_is_left_of_what_was_refused(cluster: Cluster) -> None:
    """The tests above look at instances alone; this one, once, at everything."""
    cluster.eschedule("launch", f"resources=VCPU:1,{SHAPE},NO_SUCH_CLASS:1", check=False)
    cluster.eschedule("launch", "resources=VCPU:1,MEMORY_MB:96", check=False)
    cluster.agree()


# --- refused by the host -------------------------------------------------------------------------


def test_images_that_cannot_be_used(cluster: Cluster, images: ImageServer, tmp_path: Path) -> None:
    """All at once, beside one that drips. Each ends in error, its claim released, nothing on its host."""
    secret = tmp_path / "secret"
    secret.write_text("not for guests")
    image = tmp_path / "backed.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image, "64M"], check=True)
    large = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", large, "2G"], check=True)
    etcd = f"http://{cluster.etcd.endpoint}/version"
    bad = {
        "missing": (images.missing(), ["404", "check the URL"]),
        "html": (images.serving(b"<!DOCTYPE html><title>no</title>", type_="text/html"), ["HTML", "check the URL"]),
        "html-untold": (images.serving(b"<!DOCTYPE html>" + b" " * 4096), ["HTML", "check the URL"]),
        "text": (images.serving(b"nothing here\n" * 100), ["text"]),
        "truncated": (images.truncated(), ["truncated", "try again later"]),
        "to-loopback": (images.redirecting("http://127.0.0.1:1/image"), ["loopback"]),
        "to-loopback6": (images.redirecting("http://[::ffff:127.0.0.1]:1/image"), ["loopback"]),
        "to-link-local": (images.redirecting("http://169.254.169.254/latest/meta-data"), ["link-local"]),
        "to-etcd": (images.redirecting(etcd), [cluster.address, "may not come from"]),
        "etcd": (etcd, [cluster.address, "may not come from"]),
        "to-a-file": (images.redirecting("file:///etc/passwd"), ["http"]),
        "for-ever": (_loop(images), ["redirects"]),
        "nobody": (f"http://{cluster.image_address}:1/image", ["refused"]),
        "backed": (images.serving(image.read_bytes()), ["backing"]),
        "larger-than-its-disk": (images.serving(large.read_bytes()), ["GB"]),
        "path": ("/etc/passwd", ["allow"]),
        "path-with-dots": (f"{cluster.image.parent}/../../setup.py", ["allow"]),
    }

    drips = [cluster.launch("--image", images.dripping(), host=host, wait=False) for host in cluster.hosts]

    def launch(item: tuple[str, tuple[str, list[str]]]) -> tuple[str, Result]:
        name, (url, _) = item
        result = cluster.eschedule(
            "launch",
            cluster.query(),
            "--name",
            name,
            "--image",
            url,
            "--wait",
            "-o",
            "json",
            check=False,
            timeout_s=300,
        )
        return name, result

    with ThreadPoolExecutor(len(bad)) as pool:
        results = dict(pool.map(launch, bad.items()))
    assert [cluster.show(drip.uuid)["state"] for drip in drips] == ["creating", "creating"], "none was held up"
    wrong = []
    for name, result in results.items():
        try:
            _failed_on_its_host(result, name, bad[name][1])
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)
    cluster.destroy(*(drip.uuid for drip in drips))
    cluster.agree()
    cluster.destroy(*results)
    cluster.agree()


def _failed_on_its_host(result: Result, name: str, words: list[str]) -> None:
    assert result.status == 1, result
    shown = json.loads(result.stdout)
    assert (shown["name"], shown["state"]) == (name, "error"), result
    line = result.stderr.removesuffix("\n")
    assert "\n" not in line, result
    assert line.startswith("error: "), result
    assert ";" in line, f"it does not say what to do: {line}"
    for word in words:
        assert word in line, f"{word!r} is not in {line!r}"


def _loop(images: ImageServer) -> str:
    url = images.missing()
    images.redirect(url, url)
    return url


# --- harmless, and carried as it is --------------------------------------------------------------


def test_user_data_that_looks_like_a_domains_xml_reaches_the_guest_untouched(cluster: Cluster) -> None:
    data = "#!/bin/sh\n# </domain></devices><disk type='file'/> &amp; ]]> \u20ac\n"
    data += "md5sum /config/openstack/latest/user_data\n"
    guest = cluster.launch(user_data=data, name="a-b-c")
    digest = hashlib.md5(data.encode()).hexdigest()
    guest.host.wait_console(guest.uuid, f"{digest}  /config/openstack/latest/user_data\n")
    xml = guest.host.domain(guest.uuid).XMLDesc()
    assert xml.count("</domain>") == 1
    assert "&amp;" not in xml
    cluster.agree()
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_user_data_of_64_kib_is_not_too_long(cluster: Cluster) -> None:
    data = "#!/bin/sh\nexit 7\n".ljust(64 * 1024, "#")
    guest = cluster.launch(user_data=data)
    guest.host.wait_console(guest.uuid, "guest: user-data exit 7\n")
    cluster.agree()
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_an_image_that_never_comes(slow_launch: tuple[Cluster, subprocess.Popen[str]]) -> None:
    cluster, process = slow_launch
    stdout, stderr = process.communicate(timeout=200)
    _failed_on_its_host(Result(process.returncode, stdout, stderr), "slow", ["stalls", "try again later"])
    cluster.agree()
    cluster.destroy("slow")
    cluster.agree()
