"""What ends a sequence that asked for nothing wrong, by the name under which it travels between processes.

EngineFault          any of these; `message` is safe to show to a client
├── QueueTimeout     it waited longer for its first step than it may (429)
├── StepFailed       the step that ran it failed (500)
├── InvalidLogits    the model gave it numbers by which no token can be chosen (500)
├── OutOfMemory      there was no memory for it just then (503)
├── ReplicaLost      of several engines, the one that ran it has ended (503)
└── NoReplica        of several engines, none is there just then (503)
"""

from peftserve.adapters.errors import AdapterError, error_of

REPLICA_SECONDS = 5  # until another replica is there, or one that is has a place


class EngineFault(Exception):
    """The base of all errors here.

    retry_seconds: after which it may be worth to ask again; set by who knows that, None until then.
    """

    retry_seconds: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class QueueTimeout(EngineFault):
    pass


class StepFailed(EngineFault):
    pass


class InvalidLogits(EngineFault):
    pass


class OutOfMemory(EngineFault):
    pass


class ReplicaLost(EngineFault):
    retry_seconds = REPLICA_SECONDS


class NoReplica(EngineFault):
    retry_seconds = REPLICA_SECONDS


_KINDS = (QueueTimeout, StepFailed, InvalidLogits, OutOfMemory, ReplicaLost, NoReplica)
_FAULTS = {fault.__name__: fault for fault in _KINDS}


def received(kind: str | None, message: str, param: str | None = None) -> AdapterError | EngineFault:
    """Return an error as the engine has met it. kind: name of a class here or in adapters/errors.py."""
    if (fault := _FAULTS.get(kind or "")) is not None:
        return fault(message)
    return error_of(kind, message, param)
