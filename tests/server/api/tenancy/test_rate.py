from peftserve.server.api.tenancy.rate import LONGEST, FreeRate


def test_what_is_told_is_what_it_takes_if_it_goes_on():
    now = [100.0]
    rate = FreeRate(lambda: now[0])
    assert rate.seconds_until(5) >= 1, "nothing is known yet"
    rate.began()
    for _ in range(20):
        now[0] += 0.5
        rate.freed(4, is_idle=False)
    assert rate.seconds_until(80) == 10
    assert rate.seconds_until(80, processes=2) == 5
    assert rate.seconds_until(1) == 1
    assert rate.seconds_until(10**9) == LONGEST
    now[0] += 1000
    assert rate.seconds_until(10) == LONGEST, "nothing has come free for long"
    rate.freed(1, is_idle=True)
    rate.began()
    now[0] += 1
    assert rate.seconds_until(1) == 1
