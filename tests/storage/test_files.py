"""Files that are replaced whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sitcli.errors import SitError
from sitcli.storage.files import (
    checksum_holds,
    hash_file,
    hash_json,
    is_same_file,
    open_same,
    replacing,
    with_checksum,
    write_json,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Catches: a file cut short by an error in the middle, or a temporary one left behind."""
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [True, False])
def test_a_write_replaces(tmp_path: Path, durable: bool) -> None:
    """Catches: a temporary file that never gets its name, or stands in the way after a kill."""
    path = tmp_path / "a.txt"
    (tmp_path / ".a.txt.tmp").write_text("left behind by a kill, and longer than the new one")
    with replacing(path, durable=durable) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_hashes(tmp_path: Path) -> None:
    """Catches: names of runs and sets that change with the order of a dict, or between versions."""
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})
    assert hash_json([1, "x"])[:8] == "23b788ec"
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc").startswith("ba7816bf")


def test_a_document_keeps_its_own_checksum():
    """Catches: a checksum that another order or a tuple breaks, or that covers a part only."""
    document = with_checksum({"b": (1, 2), "a": {"deep": 0.1}, "1": None})
    assert list(document)[-1] == "checksum"
    read = json.loads(json.dumps(document))
    assert checksum_holds(read)
    assert checksum_holds(dict(reversed(read.items())))  # copied by a version that knew of none
    moved = dict(sorted(read.items(), key=lambda pair: (pair[0] == "checksum", pair[0])))
    assert list(moved) != list(read)
    assert checksum_holds(moved)
    assert not checksum_holds(moved | {"a": 2})
    for change in ({"a": {"deep": 0.2}}, {"b": [1]}, {"checksum": "0"}):
        assert not checksum_holds(read | change)
    assert checksum_holds({"a": 1})  # written before there were any
    assert with_checksum(document) == document | {"checksum": document["checksum"]}


def test_a_file_that_took_the_name_is_not_the_same(tmp_path: Path) -> None:
    """Catches: one half of a file read from another; and a file that is refused because it was
    moved, or numbered anew by a file system behind a network."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    facts = path.stat()
    with open_same(path, facts) as file:
        assert file.read() == b"one"
    path.write_bytes(b"other")  # in place: the same file
    with open_same(path, facts) as file:
        assert file.read() == b"other"
    (tmp_path / "b").write_bytes(b"twice")
    os.utime(tmp_path / "b", (1, 1))
    os.replace(tmp_path / "b", path)
    with pytest.raises(SitError, match="replaced by another file"):
        open_same(path, facts)
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert is_same_file(copy.stat(), path.stat())
    path.unlink()
    with pytest.raises(SitError, match="cannot read"):
        open_same(path, facts)
