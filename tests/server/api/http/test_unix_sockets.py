import socket

import pytest

from peftserve.server.api.http.unix_sockets import LONGEST_PATH, listening_at


def test_a_socket_is_there_while_it_is_listened_on(tmp_path):
    path = tmp_path / "s"
    with listening_at(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with pytest.raises(OSError, match="another server does"), listening_at(path):
            pass
        path.unlink()
        with listening_at(path):  # of a server that takes the place
            pass
    assert not path.exists()


def test_what_is_no_dead_socket_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OSError, match="no socket is there"), listening_at(path):
        pass
    assert path.read_text() == "mine"
    with pytest.raises(OSError, match=f"has {LONGEST_PATH} bytes at most"), listening_at(tmp_path / ("x" * 108)):
        pass
    with pytest.raises(OSError, match="cannot listen at"), listening_at(tmp_path / "nowhere" / "s"):
        pass


def test_a_dead_socket_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with listening_at(tmp_path / "s"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
