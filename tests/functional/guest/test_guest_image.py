"""The build of the small image with the real tools, and the reader of JSON that goes into it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecompute.cluster.errors import StorageError
from ecompute.dev import guest_image

AWK_PROGRAM = Path(guest_image.__file__).with_name("files") / "guest-json.awk"


def test_equal_inputs_give_an_equal_image_of_some_20_mb(tmp_path: Path, small_image: Path) -> None:
    again = guest_image.build(tmp_path / "image.qcow2")
    assert again.read_bytes() == small_image.read_bytes()
    assert again.stat().st_size < 20_000_000
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", again]))
    assert info["format"] == "qcow2"
    assert info["virtual-size"] < 24_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["image.qcow2"]


def test_two_that_ask_at_once_get_one_image(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(guest_image.build_cached, [tmp_path, tmp_path])
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".guest-lock", first.name])


def test_a_killed_build_leaves_no_image_and_its_rest_goes_with_the_next(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from ecompute.dev import guest_image as g; g.build_cached(pathlib.Path(sys.argv[1]))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    child = subprocess.Popen([sys.executable, "-c", program, tmp_path], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".guest-*.qcow2.*/initrd")):
        assert child.poll() is None and time.monotonic() < deadline
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list(tmp_path.glob("*.qcow2"))
    image = guest_image.build_cached(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".guest-lock", image.name])


def test_a_step_that_fails_says_which_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_image, "MBR_CODE", Path(__file__))  # boot code is there; the partition will not be
    monkeypatch.setattr(guest_image, "PARTITION_SECTOR", 2048 - 1)
    monkeypatch.setattr(guest_image, "CLUSTER_BYTES", 512)
    with pytest.raises(StorageError, match=r"mformat|mcopy|syslinux"):
        guest_image.build(tmp_path / "image.qcow2")
    assert not list(tmp_path.iterdir())


def flatten(value: object, path: str = "") -> list[str]:
    """Say in Python what the awk program is to print."""
    prefix = path and f"{path}/"
    if isinstance(value, dict):
        members = [
            (str(place) if path == "public_keys" else key, one) for place, (key, one) in enumerate(value.items())
        ]
    elif isinstance(value, list):
        members = [(str(place), one) for place, one in enumerate(value)]
    elif isinstance(value, str):
        return [f"{path}\t" + "".join(" " if ord(c) < 32 or ord(c) == 127 else c for c in value)]
    else:
        return [f"{path}\t{json.dumps(value)}"]
    return [line for key, one in members for line in flatten(one, prefix + key)]


def awk(text: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["busybox", "awk", "-f", AWK_PROGRAM], input=text, capture_output=True, timeout=20)


keys = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=8) | st.just("public_keys")
texts = st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=st.dictionaries(keys, values, max_size=4), indent=st.sampled_from([None, 2]), is_ascii=st.booleans())
def test_the_guest_reads_any_json(value: dict[str, object], indent: int | None, is_ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    done = awk(text.encode())
    assert done.returncode == 0
    assert done.stdout.decode().split("\n")[:-1] == flatten(value)


@pytest.mark.parametrize("text", [b"", b"{", b'{"a":}', b'{"a" 1}', b'{"a":1} x', b'{"a":"', b"[1 2]", b'{"a":1,}'])
def test_the_guest_knows_what_is_not_json(text: bytes) -> None:
    assert awk(text).returncode == 1
