import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftserve.server.checkpoint.errors import MergeRefused
from peftserve.server.checkpoint.shards import Entry, ShardWriter
from peftserve.server.checkpoint.stored import INDEX, checkpoint_folder, stored_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "b": torch.arange(5, dtype=torch.int64),
    "c": torch.tensor(1.5),
    "d": torch.zeros(0, 3),
    "e": torch.arange(9, dtype=torch.float16),
}
ENTRIES = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]


@pytest.mark.parametrize(("most", "shards"), [(1 << 20, 1), (60, 2), (1, 5)])
def test_shards_are_read_back_by_safetensors_and_by_offset(tmp_path: Path, most: int, shards: int) -> None:
    with ShardWriter(tmp_path, ENTRIES, most) as writer:
        for name in reversed(TENSORS):
            if name == "e":
                writer.write_pieces(name, [TENSORS[name].numpy().tobytes()[:4], TENSORS[name].numpy().tobytes()[4:]])
            else:
                writer.write(name, TENSORS[name])
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == shards
    assert (tmp_path / INDEX).exists() == (shards > 1)
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    stored = stored_tensors(tmp_path)
    assert read.keys() == stored.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor)
        assert torch.equal(stored[name].read(), tensor)
        assert b"".join(stored[name].pieces()) == tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if shards > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"] == {"total_parameters": 21, "total_size": 74}
        assert index["weight_map"]["a"] == f"model-00001-of-{shards:05}.safetensors"


def test_a_tensor_is_rounded_to_the_type_that_was_announced(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, [Entry("a", torch.bfloat16, (3, 2))], 100) as writer:
        writer.write("a", torch.full((2, 3), 1 / 3).T)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], torch.full((3, 2), 1 / 3, dtype=torch.bfloat16))


def test_what_is_not_written_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not written"), ShardWriter(tmp_path, ENTRIES, 100):
        pass


def test_checkpoints_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(MergeRefused, match="no model of that name"):
        checkpoint_folder(str(tmp_path / "nowhere"))
    with pytest.raises(MergeRefused, match=r"holds no model\.safetensors"):
        stored_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345678junk")
    with pytest.raises(MergeRefused, match="cannot be read as safetensors"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(MergeRefused, match=r"lacks gone\.safetensors"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model.safetensors").unlink()
    with ShardWriter(tmp_path, ENTRIES, 1 << 20) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-20])
    cut = stored_tensors(tmp_path)
    with pytest.raises(MergeRefused, match="ends too early"):
        [tensor.read() for tensor in cut.values()]
