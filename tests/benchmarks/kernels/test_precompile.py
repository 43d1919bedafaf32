from pathlib import Path

from benchmarks.kernels.axes import scenarios
from benchmarks.kernels.main import resolve
from benchmarks.kernels.options import make_parser
from benchmarks.kernels.precompile import _run_once_each

PEERS = """
from pathlib import Path
class Peer:
    name, version = "peer", ""
    def prepare(self, step):
        with Path(__file__).with_name("calls").open("a") as calls:
            calls.write(f"{step.layers} {step.scenario.tokens}\\n")
        raise RuntimeError("is reported where it is measured")
def contenders():
    return [Peer()]
"""


def test_every_contender_runs_once_on_every_step(tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(PEERS)
    words = ["--device", "cpu", "--quick", "--phase", "decode", "--peers", str(tmp_path), "--only", "peer"]
    options = make_parser().parse_args(words)
    resolve(options)
    _run_once_each(options, scenarios("cpu", ("decode",), quick=True), end=0.0)
    assert not (tmp_path / "calls").exists()
    _run_once_each(options, scenarios("cpu", ("decode",), quick=True), end=float("inf"))
    assert (tmp_path / "calls").read_text() == "1 16\n"
