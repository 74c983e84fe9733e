from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidImage, StorageError
from ecompute.storage.fetch.api import shown
from ecompute.storage.fetch.limits import NETWORK_CHUNK_BYTES, Limits, Pace, Sink


def test_a_transfer_that_brings_enough_in_each_window_does_not_stall() -> None:
    pace = Pace(30, 30_000, now=0)
    for second in range(1, 1000):
        assert not pace.is_stalled(second, second * 1001)


def test_a_transfer_below_the_rate_stalls_once_the_window_is_over() -> None:
    pace = Pace(30, 30_000, now=0)
    assert not pace.is_stalled(30, 29_999)
    assert pace.is_stalled(30.1, 29_999)


def test_a_window_begins_anew_for_another_server() -> None:
    pace = Pace(30, 30_000, now=0)
    pace.restart(29, 0)
    assert not pace.is_stalled(58, 0)
    assert pace.is_stalled(60, 0)


def test_a_server_at_the_least_rate_is_not_mistaken_for_a_stalled_one() -> None:
    """What came is known a chunk at a time; a chunk must be smaller than what a window asks for."""
    limits = Limits()
    assert limits.stall_bytes > NETWORK_CHUNK_BYTES


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.binary(max_size=5000) | st.integers(0, 600_000).map(bytes), max_size=8))
def test_what_is_written_is_what_is_hashed(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("sink") / "file"
    path.touch()
    sink = Sink(path, max_bytes=1 << 30, kept_free_bytes=0, name="it")
    for chunk in chunks:
        sink.write(chunk)
    sha256 = sink.finish()
    sink.close()
    assert path.read_bytes() == b"".join(chunks)
    assert sha256 == hashlib.sha256(b"".join(chunks)).hexdigest()


def test_a_sink_takes_no_byte_above_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    sink = Sink(path, max_bytes=10, kept_free_bytes=0, name="it")
    sink.write(bytes(10))
    with pytest.raises(InvalidImage, match=r"image\.max_gb"):
        sink.write(b"x")
    sink.close()


def test_a_sink_expects_no_more_than_the_disk_has(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    sink = Sink(path, max_bytes=1 << 62, kept_free_bytes=0, name="it")
    with pytest.raises(StorageError, match="no room"):
        sink.expect(1 << 60)
    sink.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://a.example/i.qcow2", "https://a.example/i.qcow2"),
        ("https://me:secret@a.example:8/i?token=secret#secret", "https://a.example:8/i?…"),
        ("http://[::1/i?secret", "http://[::1/i"),
        ("/var/lib/images/i", "/var/lib/images/i"),
        ("file:///var/lib/i", "file:///var/lib/i"),
        ("http://me:secret@a/\x1b[31m\n", "http://a/ [31m"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, text: str) -> None:
    assert shown(url) == text


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=300))
def test_any_text_is_shown_on_one_short_line(url: str) -> None:
    assert shown(url).isprintable()
    assert len(shown(url)) <= 200
