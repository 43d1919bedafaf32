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


def test_a_release_is_owed_by_all_until_they_have_confirmed_it_or_the_adapter_is_there_anew():
    engines = Engines()
    here, away = engines.come("here"), engines.come("away")
    engines.go(away)
    for digest in "xy":
        engines.release(digest)
    here.confirm("x")
    assert (list(here.unreleased), list(away.unreleased)) == (["y"], ["x", "y"])
    engines.retain("y")
    assert (list(here.unreleased), list(away.unreleased)) == ([], ["x"])


def test_the_last_releases_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "MOST_UNRELEASED", 2)
    engines = Engines()
    engine = engines.come("a")
    for digest in "xyxz":
        engines.release(digest)
    assert list(engine.unreleased) == ["x", "z"]
