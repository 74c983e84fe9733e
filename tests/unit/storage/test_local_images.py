"""Images by path: only from where the operator allows it, wherever symlinks lead."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ecompute.cluster.config import ImageSettings
from ecompute.cluster.errors import Cancelled, InvalidImage, Refused, StorageError
from ecompute.storage import partial
from ecompute.storage.fetch import Fetcher, Limits

IMAGE = b"\xeb" + bytes(300_000) + b"end"


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    directory = tmp_path / "allowed"
    directory.mkdir()
    (directory / "image").write_bytes(IMAGE)
    return directory


@pytest.fixture
def into(tmp_path: Path) -> Path:
    directory = tmp_path / "into"
    directory.mkdir()
    return directory


def fetcher(*allowed: Path, max_gb: int = 1, limits: Limits | None = None) -> Fetcher:
    return Fetcher(ImageSettings(default="", allow_paths=allowed, max_gb=max_gb), limits=limits)


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "FILE://{}"])
def test_an_allowed_file_is_copied(allowed: Path, into: Path, form: str) -> None:
    fetched = fetcher(allowed).fetch(form.format(allowed / "image"), into)
    assert fetched.path is not None
    assert fetched.path.read_bytes() == IMAGE
    assert fetched.sha256 == hashlib.sha256(IMAGE).hexdigest()
    assert fetched.path.stat().st_ino != (allowed / "image").stat().st_ino
    partial.discard(fetched.path)


def test_an_unchanged_file_is_not_copied_again(allowed: Path, into: Path) -> None:
    source = fetcher(allowed)
    url = str(allowed / "image")
    first = source.fetch(url, into)
    assert first.path is not None
    partial.discard(first.path)
    assert source.fetch(url, into, known=first.validator).not_modified
    (allowed / "image").write_bytes(IMAGE + b"changed")
    second = source.fetch(url, into, known=first.validator)
    assert second.path is not None
    assert second.size_bytes == len(IMAGE) + 7
    partial.discard(second.path)


def test_nothing_is_allowed_by_default(allowed: Path, into: Path) -> None:
    with pytest.raises(Refused, match=r"image\.allow_paths"):
        fetcher().fetch(str(allowed / "image"), into)


@pytest.mark.parametrize(
    "path", ["{}/../secret", "{}/link", "{}/directory/secret", "{}-neighbour/image", "/etc/passwd", "{}/../absent"]
)
def test_a_path_that_leads_outside_is_refused_whether_it_exists_or_not(allowed: Path, into: Path, path: str) -> None:
    secret = allowed.parent / "secret"
    secret.write_bytes(IMAGE)
    (allowed / "link").symlink_to(secret)
    (allowed / "directory").symlink_to(allowed.parent)
    (allowed.parent / "allowed-neighbour").mkdir()
    (allowed.parent / "allowed-neighbour" / "image").write_bytes(IMAGE)
    with pytest.raises(Refused, match="may not be taken from"):
        fetcher(allowed).fetch(path.format(allowed), into)
    assert list(into.iterdir()) == []


def test_a_symlink_within_the_allowed_directory_is_followed(allowed: Path, into: Path) -> None:
    (allowed / "link").symlink_to("image")
    fetched = fetcher(allowed).fetch(str(allowed / "link"), into)
    assert fetched.size_bytes == len(IMAGE)
    assert fetched.path is not None
    partial.discard(fetched.path)


def test_an_allowed_directory_may_be_named_through_a_symlink(allowed: Path, into: Path) -> None:
    alias = allowed.parent / "alias"
    alias.symlink_to(allowed)
    fetched = fetcher(alias).fetch(str(alias / "image"), into)
    assert fetched.path is not None
    partial.discard(fetched.path)


def test_only_regular_files_are_images(allowed: Path, into: Path) -> None:
    os.mkfifo(allowed / "fifo")
    (allowed / "directory").mkdir()
    for name in ("fifo", "directory"):
        with pytest.raises(InvalidImage, match="not a regular file"):
            fetcher(allowed).fetch(str(allowed / name), into)


@pytest.mark.parametrize("name", ["absent", "image/absent", "a\x00b"])
def test_a_path_that_names_nothing_is_an_invalid_image(allowed: Path, into: Path, name: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        fetcher(allowed).fetch(f"{allowed}/{name}", into)
    assert caught.value.hint


def test_too_large_a_file_is_refused_before_it_is_copied(allowed: Path, into: Path) -> None:
    with (allowed / "large").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(InvalidImage, match="larger than the 1 GiB"):
        fetcher(allowed).fetch(str(allowed / "large"), into)


def test_a_file_for_which_the_disk_has_no_room_is_refused(allowed: Path, into: Path) -> None:
    with pytest.raises(StorageError, match="no room"):
        fetcher(allowed, limits=Limits(kept_free_bytes=1 << 60)).fetch(str(allowed / "image"), into)
    assert list(into.iterdir()) == []


def test_a_cancelled_copy_leaves_nothing(allowed: Path, into: Path) -> None:
    asked = iter([False, True, True])
    with pytest.raises(Cancelled):
        fetcher(allowed).fetch(str(allowed / "image"), into, cancelled=lambda: next(asked))
    assert list(into.iterdir()) == []
