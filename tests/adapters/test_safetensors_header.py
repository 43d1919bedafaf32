import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from peftserve.adapters import safetensors_header
from peftserve.adapters.errors import AdapterError, AdapterTooLarge, InvalidAdapter
from peftserve.adapters.safetensors_header import TensorInfo, read_header

Read = Callable[[bytes], dict[str, TensorInfo]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write_and_read(content: bytes) -> dict[str, TensorInfo]:
        path = tmp_path / "adapter_model.safetensors"
        path.write_bytes(content)
        return read_header(path)

    return write_and_read


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "b": torch.zeros(3, 5, dtype=torch.bfloat16),
        "a": torch.zeros(2, 7),
        "empty": torch.zeros(0, 4),
        "c": torch.zeros((), dtype=torch.float16),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"format": "pt"})
    header = read_header(path)
    assert {name: info.shape for name, info in header.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert {info.dtype for info in header.values()} == {"F32", "F16", "BF16"}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": entry(0, 8)}, b"\0" * 9, "its tensors take 8"),
        ({"x": entry(0, 8)}, b"\0" * 7, "its tensors take 8"),
        ({"x": entry(4, 8)}, b"\0" * 8, "gap or an overlap before x"),
        ({"x": entry(0, 8), "y": entry(4, 12)}, b"\0" * 12, "gap or an overlap before y"),
        ({"x": entry(0, 8), "y": entry(12, 16)}, b"\0" * 16, "gap or an overlap before y"),
        ({"x": entry(0, 8, [3])}, b"\0" * 8, "gives x 8 bytes"),
        ({"x": entry(8, 0, [])}, b"", "gives x -8 bytes"),
        ({"x": entry(0, 8, [1], "C64")}, b"\0" * 8, "holds x as C64; served are F32, F16, BF16, I64"),
        ({"x": entry(0, 8, [1], "C64")}, b"\0" * 8, "holds x as C64"),
        ({"x": entry(0, 4, [-1])}, b"\0" * 4, "impossible shape"),
        ({"x": entry(0, 4, [True])}, b"\0" * 4, "impossible shape"),
        ({"x": entry(0, 4, [1] * 9)}, b"\0" * 4, "impossible shape"),
        ({"x": entry(0, 0, [1 << 40, 1 << 40, 0])}, b"", None),
        ({"x": {**entry(0, 4), "data_offsets": [0, 4, 8]}}, b"\0" * 4, "impossible offsets"),
        ({"x": {**entry(0, 4), "data_offsets": [0, 4.0]}}, b"\0" * 4, "impossible offsets"),
        ({"x": {**entry(0, 4), "extra": 1}}, b"\0" * 4, "something else than"),
        ({"x": [1]}, b"", "something else than"),
        ({"": entry(0, 4)}, b"\0" * 4, "1 to 512 printable"),
        ({"x" * 513: entry(0, 4)}, b"\0" * 4, "1 to 512 printable"),
        ({"x\n": entry(0, 4)}, b"\0" * 4, "1 to 512 printable"),
        ({"__metadata__": {"format": 1}}, b"", "__metadata__"),
        ({"__metadata__": []}, b"", "__metadata__"),
    ],
)
def test_malformed_headers(
    read: Read, safetensors_bytes: Callable[..., bytes], header: dict[str, Any], data: bytes, message: str | None
) -> None:
    content = safetensors_bytes(header, data)
    if message is None:
        read(content)
        return
    with pytest.raises(InvalidAdapter, match=message) as error:
        read(content)
    assert error.value.param == "files"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"x": 1, "x": 2}', "key 'x' occurs twice"),
        (b'{"x": {"dtype": "F32", "dtype": "F16"}}', "key 'dtype' occurs twice"),
        (b'{"x": NaN}', "NaN is not a JSON value"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"x": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"x": "\xff"}', "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
    ],
)
def test_malformed_json(read: Read, safetensors_bytes: Callable[..., bytes], text: bytes, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        read(safetensors_bytes(text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes and no header"),
        (b"\x02\0\0", "has 3 bytes and no header"),
        (struct.pack("<Q", 1 << 62) + b"{}", "announces a header of"),
        (pickle.dumps({"x": [1.0] * 20}), "is a pickle file"),
        (b"PK\x03\x04" + b"\0" * 100, "is a pickle file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_files_that_are_something_else(read: Read, content: bytes, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        read(content)


def test_header_whose_length_looks_like_a_pickle(read: Read, safetensors_bytes: Callable[..., bytes]) -> None:
    """0x0480 is a fine length: only what follows tells the two apart."""
    assert read(safetensors_bytes(b"{}" + b" " * (0x0480 - 2))) == {}


def test_limits(read: Read, safetensors_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(AdapterTooLarge, match="over 1000 bytes"):
        read(safetensors_bytes(b"{}" + b" " * 1000))
    monkeypatch.setattr(safetensors_header, "MAX_TENSORS", 2)
    with pytest.raises(AdapterTooLarge, match="holds 3 tensors; the limit is 2"):
        read(safetensors_bytes({name: entry(0, 0, [0]) for name in "abc"}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "BF16", "I8"]) | JSON},
    optional={
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-4, 64), max_size=3) | JSON,
    },
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(header=st.dictionaries(st.text(max_size=6), ENTRY | JSON, max_size=4) | JSON, data=st.binary(max_size=64))
def test_fuzzed_headers_raise_nothing_else(
    read: Read, safetensors_bytes: Callable[..., bytes], header: Any, data: bytes
) -> None:
    try:
        infos = read(safetensors_bytes(json.dumps(header).encode(), data))
    except AdapterError:
        return
    assert sum(info.end - info.start for info in infos.values()) == len(data)


GOOD = save({"a.lora_A.weight": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})


@FUZZ
@given(position=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), cut=st.integers(0, len(GOOD)))
@example(position=0, byte=255, cut=len(GOOD))
def test_flipped_bytes_and_cut_files_raise_nothing_else(read: Read, position: int, byte: int, cut: int) -> None:
    mutated = GOOD[:position] + bytes([byte]) + GOOD[position + 1 :]
    try:
        infos = read(mutated[:cut])
    except AdapterError:
        return
    assert cut == len(GOOD)
    assert len(infos) == 2
