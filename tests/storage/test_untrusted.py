"""Weights of other people: read without running their code, and bounded in memory."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from sitcli.errors import SitError
from sitcli.storage.tensors import write_tensors
from sitcli.storage.untrusted import (
    check_archive,
    named_tensors,
    read_content,
    read_metadata,
    read_weights,
)

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[k], expected[k]) for k in found
    )


@pytest.mark.parametrize("form", ["zip.pt", "legacy.pth", "plain.bin", "one.safetensors"])
def test_every_form_of_file_gives_the_same_tensors(tmp_path: Path, form: str) -> None:
    """Catches: a form that is not read, or tensors of another dtype or device."""
    path = tmp_path / form
    if form.endswith("safetensors"):
        write_tensors(path, WEIGHTS)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=not form.startswith("legacy"))
    assert same(read_content(path), WEIGHTS)
    assert same(read_weights(path), WEIGHTS)


def test_what_trainers_keep_beside_tensors_is_read(tmp_path: Path) -> None:
    """Catches: a trainer's checkpoint refused for its arguments or paths."""
    content = dict(ema=WEIGHTS, args=argparse.Namespace(out=Path("/data"), lr=1e-4), step=7)
    torch.save(content, tmp_path / "a.pt")
    found = read_content(tmp_path / "a.pt")
    assert (found["args"], found["step"]) == (content["args"], 7)
    assert same(found["ema"], WEIGHTS)


class Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_is_never_run(tmp_path: Path, form: str) -> None:
    """Catches: a file of weights that does something when it is read."""
    marker, path = tmp_path / "ran", tmp_path / "a.pt"
    content = {"w": torch.zeros(1), "evil": Touch(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Touch(marker)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(SitError, match=r"could run its code|cannot read"):
        read_content(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Touch(marker)))  # it would have
    assert marker.exists()


def test_a_file_that_unfolds_is_refused(tmp_path: Path) -> None:
    """Catches: a gigabyte in memory from a file of a kilobyte, by compression or by strides."""
    torch.save({"w": torch.zeros(1 << 22)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in whole.infolist():
            bomb.writestr(member.filename, whole.read(member))
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(SitError, match="claims 16,"):
        read_content(tmp_path / "bomb.pt")
    torch.save({"w": torch.zeros(1).expand(1 << 22)}, tmp_path / "strides.pt")
    with pytest.raises(SitError, match="would take 16,777,216"):
        read_content(tmp_path / "strides.pt")
    tied = torch.zeros(1 << 19)
    torch.save([dict(a=tied, b=tied), dict(a=tied)], tmp_path / "tied.pt")
    assert len(read_content(tmp_path / "tied.pt")) == 2


def test_what_is_no_weights_is_one_line(tmp_path: Path) -> None:
    """Catches: pickle's, zip's and safetensors' own errors."""
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 20)
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    (tmp_path / "cut.pt").write_bytes(buffer.getvalue()[:-100])
    for name in ("text.pt", "empty.pt", "a.safetensors", "cut.pt"):
        with pytest.raises(SitError, match=r"cannot read|could run") as caught:
            read_content(tmp_path / name)
        assert "\n" not in caught.value.message
    with pytest.raises(SitError, match="is a folder"):
        read_content(tmp_path / "folder.pt")
    with pytest.raises(SitError, match="does not exist"):
        read_content(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(SitError, match="no named tensors"):
        read_weights(tmp_path / "list.pt")


def test_names_are_found_in_any_state_dict_around_them() -> None:
    """Catches: Lightning's wrapper taken for the weights, or numbers among the tensors."""
    assert same(named_tensors({"state_dict": {"state_dict": WEIGHTS}, "epoch": 3}), WEIGHTS)
    assert same(named_tensors({**WEIGHTS, "step": 3, 5: torch.zeros(1)}), WEIGHTS)
    assert named_tensors([WEIGHTS]) == {}
    assert same(named_tensors({"state_dict": torch.zeros(2)}), {"state_dict": torch.zeros(2)})


def test_facts_beside_tensors(tmp_path: Path) -> None:
    """Catches: facts that are lost, or an error where a file has none."""
    write_tensors(tmp_path / "a.safetensors", WEIGHTS, metadata={"sit": "{}"})
    write_tensors(tmp_path / "b.safetensors", WEIGHTS)
    assert read_metadata(tmp_path / "a.safetensors")["sit"] == "{}"
    assert "sit" not in read_metadata(tmp_path / "b.safetensors")
    with pytest.raises(SitError, match="cannot read"):
        read_metadata(tmp_path / "none.safetensors")


def test_the_crc_of_a_zip_s_members_is_verified(tmp_path):
    """Catches: a .pt that was damaged on its way, and one refused that has no CRC-32 at all."""
    file = tmp_path / "a.pt"
    torch.save({"w": torch.full((64,), 0.5)}, file)
    check_archive(file)
    content = file.read_bytes()
    at = content.index(torch.full((64,), 0.5).numpy().tobytes()) + 7
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(SitError, match=r"a\.pt is damaged: Bad CRC-32"):
        check_archive(file)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(64)}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    check_archive(file)
    (tmp_path / "b.pt").write_bytes(b"no zip file")
    check_archive(tmp_path / "b.pt")
