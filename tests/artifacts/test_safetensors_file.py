"""Header reader and single-tensor reads against the safetensors library, and every way a file can be broken."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ltxgen.artifacts.safetensors_file import BadFile, SafetensorsFile, read_header, write_safetensors


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "eight": torch.randn(2, 2, generator=generator).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "counts": torch.arange(4),
    }
    path = tmp_path / "whole.safetensors"
    save_file(tensors, path, {"config": '{"a": 1}', "model_version": "2.3.0"})
    return path


def test_header_and_tensors_equal_those_of_the_library(whole: Path):
    from safetensors import safe_open

    with safe_open(whole, "pt") as expected, SafetensorsFile(whole) as file:
        assert set(file.header.tensors) == set(expected.keys())
        assert file.header.metadata == expected.metadata()
        for key in expected.keys():  # noqa: SIM118 - no mapping
            got, want = file.read(key), expected.get_tensor(key)
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            assert torch.equal(got.reshape(-1).view(torch.uint8), want.reshape(-1).view(torch.uint8))


def test_read_tensors_have_memory_of_their_own(whole: Path):
    with SafetensorsFile(whole) as file:
        first = file.read("matrix")
        first.zero_()
        assert file.read("matrix").abs().sum() > 0


@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 3), slice(2, 9), slice(3, 3)])
def test_rows_are_read_alone(tmp_path: Path, rows: slice):
    tensors = {"a": torch.arange(5.0), "b": torch.randn(3, 4, 2).bfloat16(), "c": torch.arange(3)}
    save_file(tensors, tmp_path / "some.safetensors")
    with SafetensorsFile(tmp_path / "some.safetensors") as file:
        for key, tensor in tensors.items():
            assert torch.equal(file.read(key, rows), tensor[rows])
        assert file.read("b", rows).untyped_storage().nbytes() == tensors["b"][rows].nbytes


def test_written_files_are_read_by_the_library_and_equal_byte_for_byte(whole: Path, tmp_path: Path):
    from safetensors.torch import load_file

    with SafetensorsFile(whole) as file:
        tensors = {key: file.read(key) for key in file.header.tensors}
    metadata = {f"key {n}": str(n) for n in range(9)}
    write_safetensors(tmp_path / "one", tensors, metadata)
    write_safetensors(tmp_path / "two", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_header(tmp_path / "one").metadata == metadata
    read = load_file(tmp_path / "one")
    assert all(torch.equal(read[key].float(), tensor.float()) for key, tensor in tensors.items())


def test_truncated_data(whole: Path):
    whole.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(BadFile, match=r"truncated: \d+ of \d+ bytes"):
        read_header(whole)


def test_truncated_inside_the_header(whole: Path):
    whole.write_bytes(whole.read_bytes()[:40])
    with pytest.raises(BadFile, match="truncated: 40 bytes"):
        read_header(whole)


def test_bytes_after_the_data(whole: Path):
    whole.write_bytes(whole.read_bytes() + b"xx")
    with pytest.raises(BadFile, match="2 bytes more"):
        read_header(whole)


def test_git_lfs_pointer(tmp_path: Path):
    path = tmp_path / "pointer.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 46149344974\n")
    with pytest.raises(BadFile, match=r"Git LFS pointer.*git lfs pull"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"abc", "too short"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"PK\x03\x04" + b"\0" * 60, "truncated|not a safetensors"),
        ((4).to_bytes(8, "little") + b"nope", "no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
    ],
)
def test_other_content(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=message):
        read_header(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "broken safetensors header: t"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}, "stores t as F4"),
        ({"dtype": "F32", "data_offsets": [0, 8]}, "broken safetensors header at tensor t"),
        ("text", "broken safetensors header at tensor t"),
    ],
)
def test_broken_entries(tmp_path: Path, entry: object, message: str):
    header = json.dumps({"t": entry}).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(BadFile, match=message):
        read_header(path)


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(BadFile, match="does not exist"):
        read_header(tmp_path / "none")
    with pytest.raises(BadFile, match="is a folder"):
        read_header(tmp_path)
