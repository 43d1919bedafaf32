from peftserve.adapters.errors import InvalidAdapter


def test_messages_can_be_sent_whatever_they_quote() -> None:
    error = InvalidAdapter("no module \ud800 ü", param="\udfff")
    assert error.message.encode() == "no module \\ud800 ü".encode()
    assert error.param == "\\udfff"
