import msgspec

from peftserve.server.wire.messages import Outputs, SequenceOutput, WeightedAdapter


def test_a_part_is_keyed_by_its_files_and_its_task() -> None:
    assert WeightedAdapter("d").key == WeightedAdapter("d", 0.5, 0).key == "d"
    assert WeightedAdapter("d", 0.5, 3).key == "d:3"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(WeightedAdapter("d", 0.5, 3)), type=WeightedAdapter).task == 3


def test_a_token_goes_over_without_what_it_has_not() -> None:
    """Hundreds of these are sent and read for each step."""
    outputs = [
        SequenceOutput(request_id="plain", token_ids=[7]),
        SequenceOutput(request_id="last", token_ids=[2], finish_reason="stop", stop_token_id=2, cached_tokens=0),
    ]
    encoded = msgspec.msgpack.encode(Outputs(outputs))
    assert msgspec.msgpack.decode(encoded, type=Outputs) == Outputs(outputs)
    assert msgspec.msgpack.decode(encoded)["outputs"][0] == {"request_id": "plain", "token_ids": [7]}
