from peftserve.server.deploy import engines as module
from peftserve.server.deploy.engines import Engines


def test_one_that_comes_back_is_the_one_that_went():
    engines = Engines()
    first, other = engines.come("a"), engines.come("b")
    engines.go(first)
    assert other is not first
    assert engines.come("a") is first


def test_the_last_that_went_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "MOST_AWAY", 2)
    engines = Engines()
    went = [engines.come(name) for name in "abc"]
    for engine in went:
        engines.go(engine)
    assert [engines.come(engine.name) is engine for engine in went] == [False, True, True]
