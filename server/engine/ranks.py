"""The ranks of a divided base, as the first of them has them: their start, their loss, their end."""

from ..config import EngineConfig
from .machine import Machine, make_machine
from .model.errors import UnservableModel
from .model.runner import ModelRunner
from .parallel.group import RankGroup
from .parallel.leader import LeadingMirror, LeadingRunner
from .parallel.place import Place
from .parallel.processes import RankLost, RankProcesses


class LeadingRanks:
    """The other ranks' processes, and what this one does with them."""

    def __init__(self, config: EngineConfig) -> None:
        self._processes = RankProcesses(config)
        self._group: RankGroup | None = None  # set by `lead`

    def lead(self) -> Machine:
        """Make this rank's machine, while the others make theirs. Raises UnservableModel, also if one of them ends."""
        config = self._processes.config
        place = Place(0, config.tensor_parallel_size, self._processes.meeting)
        try:
            machine = make_machine(config, place, LeadingMirror(self._processes))
            self._processes.check()
        except RankLost as error:
            self._processes.close()
            raise UnservableModel(str(error)) from error
        except BaseException:
            self._processes.close()
            raise
        self._group = machine.group
        return machine

    def runner(self, own: ModelRunner) -> LeadingRunner:
        """Return the runner of steps that all ranks run."""
        return LeadingRunner(own, self._processes)

    def check(self) -> None:
        """Raise RankLost if a rank has ended."""
        self._processes.check()

    @property
    def pids(self) -> list[int]:
        return self._processes.pids

    def close(self) -> None:
        self._processes.close()
        if self._group is not None:
            self._group.leave()
