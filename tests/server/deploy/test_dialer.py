"""A connection is there again after it has ended, wherever the other end is by then."""

import contextlib
import socket
import threading

import msgspec
import pytest

from peftserve.server.deploy.dialer import Dialer, Target
from peftserve.server.deploy.hello import Hello
from peftserve.server.wire.framing import Unframer

PATIENCE = 60.0


class OtherEnd:
    """What is dialled."""

    def __init__(self, stack):
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(PATIENCE)
        self.target = Target(*self.listener.getsockname(), "secret")

    def accept(self):
        """Return a connection and what was said at its beginning."""
        end, _ = self.listener.accept()
        end.settimeout(PATIENCE)
        unframer, messages = Unframer(), []
        while not messages:
            messages = unframer.push(end.recv(4096))
        return end, msgspec.msgpack.decode(messages[0], type=Hello)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def dialer(stack):
    """Return a dialer for an engine that keeps a copy of each connection, as one in another process does."""

    def admit(end):
        stack.enter_context(end.dup())
        admitted.set()

    admitted = threading.Event()
    dialer = Dialer("replica", admit)
    dialer.admitted = admitted
    stack.callback(dialer.close)
    return dialer


def test_it_says_who_it_is_and_dials_again(stack, dialer):
    other = OtherEnd(stack)
    dialer.dial(other.target)
    for _ in range(3):
        end, hello = other.accept()
        assert hello == Hello("secret", "replica")
        end.close()


def test_it_goes_to_where_the_other_end_has_moved(stack, dialer):
    first, second = OtherEnd(stack), OtherEnd(stack)
    dialer.dial(first.target)
    end, _ = first.accept()
    assert dialer.admitted.wait(PATIENCE)
    dialer.dial(second.target)
    moved, _ = second.accept()
    assert end.recv(1) == b""
    end.close()
    moved.close()


def test_the_end_of_the_engine_is_that_of_the_connection(stack, dialer):
    other = OtherEnd(stack)
    dialer.dial(other.target)
    end, _ = other.accept()
    assert dialer.admitted.wait(PATIENCE)
    dialer.close()
    assert end.recv(1) == b""
    end.close()


def test_one_that_leaves_says_so_and_waits(stack, dialer):
    other = OtherEnd(stack)
    dialer.dial(other.target)
    end, _ = other.accept()
    leaving = threading.Thread(target=dialer.take_leave, args=[PATIENCE])
    leaving.start()
    second, hello = other.accept()
    assert hello == Hello("secret", "replica", leaving=True)
    assert leaving.is_alive()
    second.close()
    leaving.join(PATIENCE)
    assert not leaving.is_alive()
    end.close()


def test_where_nobody_is_it_tries_on_and_leaving_takes_no_time(stack, dialer):
    other = OtherEnd(stack)
    other.listener.close()
    dialer.dial(other.target)
    dialer.take_leave(PATIENCE)
    assert not dialer.admitted.is_set()
