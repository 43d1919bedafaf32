import torch
from torch import nn

from peftserve.server.engine.private.torch_private import bare_copy
from tests.private_rooms import missing, tables, unlisted

ROOM = "server/engine/private/torch_private.py"


def test_every_name_is_there_and_said_what_for() -> None:
    names, _ = tables(ROOM)
    assert not missing(names)
    assert not unlisted(ROOM)


def test_a_bare_copy_has_other_parameters_and_no_hooks() -> None:
    linear, seen = nn.Linear(3, 2), list[object]()
    linear.register_forward_hook(lambda *_: seen.append("after"))
    linear.register_forward_pre_hook(lambda *_: seen.append("before"))
    linear.register_forward_hook(lambda *_, **__: seen.append("with keywords"), with_kwargs=True)
    weight = torch.zeros(2, 3)
    copied = bare_copy(linear, {"weight": weight})
    assert torch.equal(copied(torch.ones(1, 3))[0], linear.bias)
    assert copied.bias is linear.bias
    assert linear.weight is not weight
    assert not seen
    linear(torch.ones(1, 3))
    assert seen == ["before", "after", "with keywords"]
