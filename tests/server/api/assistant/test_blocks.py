from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.api.assistant.blocks import Block, Blocks, Closed, Grown, Opened
from peftserve.server.api.assistant.parts import CallDelta, Parts

PIECES = st.one_of(
    st.builds(Parts, content=st.text(max_size=3)),
    st.builds(Parts, reasoning=st.text(max_size=3)),
    st.builds(Parts, reasoning=st.text(max_size=3), content=st.text(max_size=3)),
    st.integers(0, 2).map(lambda i: Parts(calls=[CallDelta(i, f"call_{i}", "f", "{"), CallDelta(i, arguments="}")])),
)


def changes(pieces):
    blocks = Blocks()
    made = [change for parts in pieces for change in blocks.take(parts)]
    return blocks, [*made, *blocks.close()]


@settings(deadline=None)
@given(st.lists(PIECES, max_size=8))
def test_changes_add_up_to_the_blocks_and_one_is_open_at_a_time(pieces):
    blocks, made = changes(pieces)
    texts, opened = {}, None
    for change in made:
        if isinstance(change, Opened):
            assert opened is None
            assert change.index == len(texts)
            opened, texts[change.index] = change.index, ""
        else:
            assert change.index == opened
            if isinstance(change, Grown):
                assert change.text
                texts[opened] += change.text
            else:
                assert isinstance(change, Closed)
                opened = None
    assert opened is None
    assert [*texts.values()] == [block.text for block in blocks.all]
    for kind, said in (("text", "content"), ("reasoning", "reasoning")):
        whole = "".join(block.text for block in blocks.all if block.kind == kind)
        assert whole == "".join(getattr(parts, said) for parts in pieces)


def test_blocks_are_in_the_order_in_which_they_began():
    pieces = [
        Parts(reasoning="hm"),
        Parts(reasoning="m", content="Let me look. "),
        Parts(calls=[CallDelta(0, "call_a", "find", '{"q":')]),
        Parts(calls=[CallDelta(0, arguments="1}"), CallDelta(1, "call_b", "stop", "{}")]),
    ]
    blocks, _ = changes(pieces)
    assert blocks.all == [
        Block("reasoning", "hmm"),
        Block("text", "Let me look. "),
        Block("call", '{"q":1}', "call_a", "find"),
        Block("call", "{}", "call_b", "stop"),
    ]


def test_a_message_without_words_can_have_an_empty_text():
    blocks = Blocks()
    made = [*blocks.open_text(), *blocks.close()]
    assert [type(change) for change in made] == [Opened, Closed]
    assert blocks.all == [Block("text")]
