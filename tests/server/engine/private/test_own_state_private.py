from tests.private_rooms import missing, tables, unlisted

ROOM = "server/engine/private/own_state_private.py"


def test_every_name_is_there_and_said_what_for() -> None:
    names, _ = tables(ROOM)
    assert not missing(names)
    assert not unlisted(ROOM)
