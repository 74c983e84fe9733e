"""The image cache over a source in memory."""

from __future__ import annotations

import hashlib
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from ecompute.cluster.errors import Cancelled, InvalidImage, Refused, StorageError, Unavailable
from ecompute.storage.fake import FakeFetcher
from ecompute.storage.fetch import Validator
from ecompute.storage.images import ImageCache

URL = "http://images.example/a"
ONE = b"\xeb" + bytes(1023)
TWO = b"\xec" + bytes(2047)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def until(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> FakeFetcher:
    made = FakeFetcher()
    made.serve(URL, ONE)
    return made


@pytest.fixture
def cache(tmp_path: Path, source: FakeFetcher) -> Iterator[ImageCache]:
    made = ImageCache(tmp_path, source)
    yield made
    source.gate.set()
    made.close()


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def index_of(url: str) -> str:
    return "index/" + sha256(url.encode())


def test_an_image_is_kept_read_only_under_its_contents_hash(cache: ImageCache, tmp_path: Path) -> None:
    image = cache.ensure(URL).result(10)
    assert image.path == tmp_path / "images" / sha256(ONE)
    assert image.path.read_bytes() == ONE
    assert stat.S_IMODE(image.path.stat().st_mode) == 0o444
    assert (image.sha256, image.format, image.virtual_size_bytes) == (sha256(ONE), "raw", 1024)
    assert image.stale_because == ""
    assert files(tmp_path) == {f"images/{sha256(ONE)}", index_of(URL)}


def test_a_hundred_callers_share_one_fetch(cache: ImageCache, source: FakeFetcher) -> None:
    source.gate.clear()
    futures = [cache.ensure(URL) for _ in range(100)]
    source.gate.set()
    assert {future.result(10).sha256 for future in futures} == {sha256(ONE)}
    assert len(source.requests) == 1


def test_a_second_ensure_asks_whether_it_changed_and_fetches_nothing(cache: ImageCache, source: FakeFetcher) -> None:
    first = cache.ensure(URL).result(10)
    inode = first.path.stat().st_ino
    assert cache.ensure(URL).result(10) == first
    assert source.requests[0].known is None
    assert source.requests[1].known is not None
    assert first.path.stat().st_ino == inode


def test_a_changed_image_is_fetched_and_the_old_one_stays(cache: ImageCache, source: FakeFetcher) -> None:
    first = cache.ensure(URL).result(10)
    source.serve(URL, TWO)
    second = cache.ensure(URL).result(10)
    assert second.sha256 == sha256(TWO)
    assert first.path.read_bytes() == ONE


def test_two_urls_with_the_same_last_part_are_two_images(cache: ImageCache, source: FakeFetcher) -> None:
    """A known fault of the project's ancestor: its cache was keyed by the URL's last part."""
    source.serve("http://a.example/disk.img", ONE)
    source.serve("http://b.example/disk.img", TWO)
    assert cache.ensure("http://a.example/disk.img").result(10).sha256 == sha256(ONE)
    assert cache.ensure("http://b.example/disk.img").result(10).sha256 == sha256(TWO)


def test_two_urls_with_the_same_content_share_one_file(cache: ImageCache, source: FakeFetcher, tmp_path: Path) -> None:
    source.serve("http://b.example/b", ONE)
    futures = [cache.ensure(URL), cache.ensure("http://b.example/b")]
    assert len({future.result(10).path for future in futures}) == 1
    assert files(tmp_path) == {f"images/{sha256(ONE)}", index_of(URL), index_of("http://b.example/b")}


def test_the_cache_outlives_its_process(cache: ImageCache, source: FakeFetcher, tmp_path: Path) -> None:
    first = cache.ensure(URL).result(10)
    cache.close()
    again = ImageCache(tmp_path, source)
    assert again.ensure(URL).result(10) == first
    assert source.requests[-1].known is not None
    again.close()


def test_one_slow_image_holds_up_no_other(cache: ImageCache, source: FakeFetcher, tmp_path: Path) -> None:
    """A known fault of the project's ancestor: one download blocked every build."""

    class Slow(FakeFetcher):
        def fetch(self, url: str, into: Path, **named: object) -> object:  # type: ignore[override]
            return (hung if "slow" in url else source).fetch(url, into, **named)  # type: ignore[arg-type]

    hung = FakeFetcher()
    hung.serve("http://slow.example/", TWO)
    hung.gate.clear()
    both = ImageCache(tmp_path / "both", Slow())
    slow = both.ensure("http://slow.example/")
    assert both.ensure(URL).result(10).sha256 == sha256(ONE)
    assert not slow.done()
    hung.gate.set()
    assert slow.result(10).sha256 == sha256(TWO)
    both.close()


def test_fetches_beyond_the_bound_wait_their_turn(source: FakeFetcher, tmp_path: Path) -> None:
    bounded = ImageCache(tmp_path, source, max_fetches=2)
    for n in range(5):
        source.serve(f"http://images.example/{n}", ONE + bytes([n]) * 512)
    source.gate.clear()
    futures = [bounded.ensure(f"http://images.example/{n}") for n in range(5)]
    until(lambda: len(source.requests) == 2)
    assert len([thread for thread in threading.enumerate() if thread.name == "image-fetch"]) == 2
    source.gate.set()
    assert len({future.result(10).sha256 for future in futures}) == 5
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "image-fetch"])
    bounded.close()


# --- giving up -----------------------------------------------------------------------------------


def test_one_who_gives_up_does_not_end_it_for_the_others(cache: ImageCache, source: FakeFetcher) -> None:
    source.gate.clear()
    first, second = cache.ensure(URL), cache.ensure(URL)
    assert first.cancel()
    source.gate.set()
    assert second.result(10).sha256 == sha256(ONE)


def test_a_fetch_that_nobody_waits_for_ends(cache: ImageCache, source: FakeFetcher, tmp_path: Path) -> None:
    source.gate.clear()
    futures = [cache.ensure(URL), cache.ensure(URL)]
    until(lambda: len(source.requests) == 1)
    for future in futures:
        assert future.cancel()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "image-fetch"])
    assert files(tmp_path) == set()


def test_who_asks_after_the_others_gave_up_begins_anew(cache: ImageCache, source: FakeFetcher) -> None:
    source.gate.clear()
    assert cache.ensure(URL).cancel()
    later = cache.ensure(URL)
    source.gate.set()
    assert later.result(10).sha256 == sha256(ONE)


def test_a_timeout_of_one_waiter_gives_nothing_up(cache: ImageCache, source: FakeFetcher) -> None:
    source.gate.clear()
    future = cache.ensure(URL)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    source.gate.set()
    assert future.result(10).sha256 == sha256(ONE)


def test_a_closed_cache_gives_up_what_runs_and_what_is_queued(source: FakeFetcher, tmp_path: Path) -> None:
    closing = ImageCache(tmp_path, source, max_fetches=1)
    source.gate.clear()
    futures = [closing.ensure(URL), closing.ensure("http://images.example/queued")]
    closing.close()
    futures.append(closing.ensure(URL))
    assert wait(futures, 10).not_done == set()
    for future in futures:
        with pytest.raises(Cancelled):
            future.result()
    assert files(tmp_path) == set()


# --- failures ------------------------------------------------------------------------------------


def test_every_waiter_hears_why_and_the_next_one_tries_again(cache: ImageCache, source: FakeFetcher) -> None:
    source.fail(URL, Unavailable("images.example does not answer"))
    source.gate.clear()
    futures = [cache.ensure(URL) for _ in range(3)]
    source.gate.set()
    for future in futures:
        with pytest.raises(Unavailable):
            future.result(10)
    source.serve(URL, ONE)
    assert cache.ensure(URL).result(10).sha256 == sha256(ONE)


def test_what_is_no_image_never_reaches_the_cache(cache: ImageCache, source: FakeFetcher, tmp_path: Path) -> None:
    source.serve(URL, b"QFI\xfb\x00\x00\x00\x03" + bytes(1000))
    with pytest.raises(InvalidImage, match=r"http://images\.example/a has"):
        cache.ensure(URL).result(10)
    assert files(tmp_path) == set()


def test_a_source_that_does_not_answer_is_replaced_by_the_cached_copy_and_said(
    cache: ImageCache, source: FakeFetcher, caplog: pytest.LogCaptureFixture
) -> None:
    cache.ensure(URL).result(10)
    source.fail(URL, Unavailable("images.example does not answer"))
    image = cache.ensure(URL).result(10)
    assert image.sha256 == sha256(ONE)
    assert image.stale_because == "images.example does not answer"
    assert "using the cached copy of http://images.example/a" in caplog.text


@pytest.mark.parametrize("error", [InvalidImage("404"), Refused("not allowed any more"), StorageError("disk")])
def test_a_withdrawn_image_is_not_replaced_by_the_cached_copy(
    cache: ImageCache, source: FakeFetcher, error: InvalidImage
) -> None:
    cache.ensure(URL).result(10)
    source.fail(URL, error)
    with pytest.raises(type(error)):
        cache.ensure(URL).result(10)


def test_a_source_without_validators_is_fetched_each_time(cache: ImageCache, source: FakeFetcher) -> None:
    source.serve(URL, ONE, validator=Validator())
    first = cache.ensure(URL).result(10)
    source.serve(URL, TWO, validator=Validator())
    assert cache.ensure(URL).result(10) != first


def test_an_answer_stays_fresh_for_as_long_as_is_set(source: FakeFetcher, tmp_path: Path) -> None:
    clock = Clock()
    cache = ImageCache(tmp_path, source, fresh_s=10, monotonic=clock)
    cache.ensure(URL).result(10)
    clock.now += 9
    cache.ensure(URL).result(10)
    assert len(source.requests) == 1
    clock.now += 2
    cache.ensure(URL).result(10)
    assert len(source.requests) == 2
    cache.close()


# --- a damaged directory -------------------------------------------------------------------------


def test_a_missing_content_is_fetched_again(cache: ImageCache, source: FakeFetcher) -> None:
    first = cache.ensure(URL).result(10)
    first.path.unlink()
    assert cache.ensure(URL).result(10) == first
    assert source.requests[-1].known is None


def test_a_shortened_content_is_fetched_again_and_replaced(cache: ImageCache) -> None:
    first = cache.ensure(URL).result(10)
    first.path.chmod(0o600)
    first.path.write_bytes(ONE[:512])
    assert cache.ensure(URL).result(10).path.read_bytes() == ONE


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"sha256": 5}'])
def test_a_damaged_index_entry_costs_one_fetch(
    cache: ImageCache, source: FakeFetcher, tmp_path: Path, damage: bytes
) -> None:
    cache.ensure(URL).result(10)
    (tmp_path / index_of(URL)).write_bytes(damage)
    assert cache.ensure(URL).result(10).sha256 == sha256(ONE)
    assert source.requests[-1].known is None
    cache.ensure(URL).result(10)
    assert source.requests[-1].known is not None


def test_what_a_killed_run_left_is_removed_at_the_next_start(source: FakeFetcher, tmp_path: Path) -> None:
    for name in ("images", "index"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".image.0123456789abcdef.part").write_bytes(b"half")
    (tmp_path / "images" / "foreign").write_bytes(b"x")
    ImageCache(tmp_path, source).close()
    assert files(tmp_path) == {"images/foreign"}


def test_a_secret_in_a_url_is_not_written_down(cache: ImageCache, source: FakeFetcher, tmp_path: Path) -> None:
    url = "http://images.example/a?signature=hunter2"
    source.serve(url, ONE)
    cache.ensure(url).result(10)
    assert b"hunter2" not in (tmp_path / index_of(url)).read_bytes()


def test_a_directory_that_cannot_be_used_says_so(source: FakeFetcher, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be used"):
        ImageCache(tmp_path / "file", source)


# --- pruning -------------------------------------------------------------------------------------


def test_prune_keeps_what_disks_stand_upon_and_removes_the_rest(cache: ImageCache, source: FakeFetcher) -> None:
    kept = cache.ensure(URL).result(10)
    source.serve("http://images.example/b", TWO)
    other = cache.ensure("http://images.example/b").result(10)
    assert cache.prune({kept.sha256}, unused_s=0) == (other.sha256,)
    assert kept.path.exists()
    assert not other.path.exists()
    assert cache.prune({kept.sha256}, unused_s=0) == ()
    assert cache.ensure("http://images.example/b").result(10) == other


def test_prune_leaves_what_was_just_returned(source: FakeFetcher, tmp_path: Path) -> None:
    """Its disk may not be made yet."""
    clock = Clock()
    cache = ImageCache(tmp_path, source, monotonic=clock)
    image = cache.ensure(URL).result(10)
    assert cache.prune(()) == ()
    clock.now += 3601
    assert cache.prune(()) == (image.sha256,)
    assert files(tmp_path) == set()
    cache.close()


def test_prune_leaves_what_is_being_asked_about(cache: ImageCache, source: FakeFetcher) -> None:
    image = cache.ensure(URL).result(10)
    source.gate.clear()
    asking = cache.ensure(URL)
    until(lambda: len(source.requests) == 2)
    assert cache.prune((), unused_s=0) == ()
    source.gate.set()
    assert asking.result(10) == image
    assert image.path.exists()


def test_prune_leaves_what_is_being_written(cache: ImageCache, tmp_path: Path) -> None:
    part = tmp_path / "images" / ".image.0123456789abcdef.part"
    part.touch()
    assert cache.prune((), unused_s=0) == ()
    assert part.exists()
