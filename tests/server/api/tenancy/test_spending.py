import pytest

from peftserve.server.api.tenancy.buckets import TokenBuckets
from peftserve.server.api.tenancy.spending import NoTokens, Spending, TokenUse
from peftserve.server.api.tenancy.tenant import Tenant


def test_what_is_set_aside_and_not_used_comes_back():
    buckets, tenant = TokenBuckets(clock=lambda: 0.0), Tenant("t", tokens_per_minute=100)
    use = TokenUse(prompt=10, most=50)
    first = Spending(buckets, tenant, use)
    first.begin()
    assert first.headers()["x-ratelimit-remaining-tokens"] == "40"
    with pytest.raises(NoTokens, match="100 tokens a minute; 40 are left") as refused:
        Spending(buckets, tenant, TokenUse(prompt=41)).begin()
    assert refused.value.seconds == 1
    use.generated = 5
    first.end()
    assert buckets.balance("t", 100) == 85
    assert first.headers()["x-ratelimit-reset-tokens"] == "9.000s"
    use.generated = 7
    first.end()
    assert buckets.balance("t", 100) == 83, "what is paid is paid once"


def test_a_request_larger_than_a_minutes_tokens_takes_a_full_bucket_and_leaves_a_debt():
    buckets, tenant = TokenBuckets(clock=lambda: 0.0), Tenant("t", tokens_per_minute=100)
    use = TokenUse(prompt=300, generated=0)
    large = Spending(buckets, tenant, use)
    large.begin()
    large.end()
    assert buckets.balance("t", 100) == -200
    with pytest.raises(NoTokens) as refused:
        Spending(buckets, tenant, TokenUse(prompt=1)).begin()
    assert refused.value.seconds == 121


def test_who_has_no_limit_has_no_bucket():
    buckets, tenant = TokenBuckets(), Tenant("t")
    spending = Spending(buckets, tenant, TokenUse(prompt=10**9))
    spending.begin()
    spending.end()
    assert spending.headers() == {}
