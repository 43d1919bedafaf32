"""From whatever was raised to what a client can be told: its own mistake by name, and what is ours as ours."""

import logging

from peftserve.adapters.errors import AdapterDamaged, AdapterError, AdapterFailed, NoMemoryForAdapter
from peftserve.adapters.peft.memory import is_out_of_memory

from ..wire.faults import EngineFault, OutOfMemory, StepFailed

logger = logging.getLogger(__name__)

SERVERS_FAULT = AdapterDamaged, AdapterFailed, NoMemoryForAdapter  # of adapters that were fine when they came
STEP_FAILED = "the engine could not run this request's step; the server's log has the cause"
NO_MEMORY = "the server has no memory for it now; try again later"


def of_adapter(error: BaseException) -> AdapterError:
    """Return what went wrong with an adapter that was inspected, compiled or loaded, as it can be told."""
    if isinstance(error, AdapterError):
        return error
    logger.error("an adapter could not be read or loaded", exc_info=error)
    if is_out_of_memory(error):
        return NoMemoryForAdapter(NO_MEMORY)
    if isinstance(error, OSError):
        return AdapterDamaged("its files could not be read now; try again, or upload the same files again")
    return AdapterFailed("the server could not read or load this adapter; its log has the cause")


def of_step(error: BaseException) -> EngineFault:
    """Return what those are told whose step has failed. The caller logs it."""
    return OutOfMemory(NO_MEMORY) if is_out_of_memory(error) else StepFailed(STEP_FAILED)
