"""Named tensors in safetensors files."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sitcli.errors import SitError
from sitcli.storage.tensors import (
    checksum,
    has_checksums,
    read_tensors,
    verify_tensors,
    write_tensors,
)


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Catches: views written as what lies behind them, a dtype that changes, or gradients kept."""
    whole = torch.randn(6, 4)
    tensors = {
        "view": whole.t()[1:3],
        "bf16": whole.bfloat16(),
        "half": whole[::2].half(),
        "long": torch.arange(5),
        "parameter": torch.nn.Parameter(whole),
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "a.safetensors", tensors, metadata={"step": "7"})
    found = read_tensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_others_may_read_what_the_system_lets_them(tmp_path: Path) -> None:
    """Catches: checkpoints for their owner's eyes alone, as safetensors makes them."""
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_read_is_one_line_with_its_hint(tmp_path: Path) -> None:
    """Catches: safetensors' own errors, or a file that is cut short read as the whole one."""
    path = tmp_path / "a.safetensors"
    with pytest.raises(SitError, match=r"cannot read .*: there is no such file") as caught:
        read_tensors(path, hint="look elsewhere")
    assert caught.value.hint == "look elsewhere"
    write_tensors(path, {"w": torch.arange(100)})
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(SitError, match="cannot read") as caught:
            read_tensors(path)
        assert "\n" not in caught.value.message
    path.unlink()
    path.mkdir()
    with pytest.raises(SitError, match="cannot read"):
        read_tensors(path)


def test_a_full_disk_is_the_systems_error(tmp_path: Path) -> None:
    """Catches: safetensors' kind of error, which nobody who waits for a full disk expects."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="large") as caught:
            write_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        write_tensors(tmp_path / "nowhere" / "a.safetensors", {"w": torch.zeros(1)})


def test_every_tensor_has_a_checksum(tmp_path: Path) -> None:
    """Catches: a changed byte that is read as a weight like any other, or the wrong tensor named.

    The CRC-32 is that of `zlib` and of every zip file: 0xCBF43926 for the digits 1 to 9.
    """
    digits = torch.tensor(list(b"123456789"), dtype=torch.uint8)
    assert checksum(digits) == "cbf43926"
    tensors = {"digits": digits, "half": torch.randn(3, 5).half(), "none": torch.zeros(0)}
    tensors["number"] = torch.tensor(2.5)
    file = tmp_path / "a.safetensors"
    write_tensors(file, tensors, metadata={"step": "7"})
    assert verify_tensors(file) == (True, [])
    content = file.read_bytes()
    file.write_bytes(content.replace(b"123456789", b"123456788"))
    assert verify_tensors(file) == (True, ["'digits' is not what was written"])
    assert read_tensors(file)["digits"][-1] == ord("8")  # as documented: verified on request
    for before, after in ((b'"step":"7"', b'"step":"6"'), (b'"digits":', b'"digitt":')):
        file.write_bytes(content.replace(before, after))
        with pytest.raises(SitError, match="its header is not what was written"):
            read_tensors(file)
        assert verify_tensors(file).problems
    file.write_bytes(content[:-1])
    with pytest.raises(SitError, match="cannot read"):
        verify_tensors(file)


def test_files_of_others_have_no_checksums(tmp_path: Path) -> None:
    """Catches: a file without checksums that is called sound, or damaged."""
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert verify_tensors(tmp_path / "a.safetensors") == (False, [])
    assert not has_checksums(tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["w"], torch.zeros(2))
