"""Compare two versions of an adapter on the same questions, and send a share of users to the newer one.

    make serve                     # in another terminal: the demo, on http://127.0.0.1:8000
    python examples/ab_test.py     # needs openai

The server keeps every version of a name under `name@version`, and any number of them answer in the same batch. Which
one a user gets is decided here, in the client, by a hash: the same user always gets the same version.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx
from openai import OpenAI

URL = os.environ.get("PEFTSERVE_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("PEFTSERVE_API_KEY", "none")
HEADERS = {"authorization": f"Bearer {KEY}"}
ADAPTERS = Path(__file__).resolve().parents[1] / "server/demo/adapters"
client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)


def upload(name: str, folder: Path) -> str:
    """Return the new version, as requests name it."""
    files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.glob("adapter_*"))]
    card = httpx.post(f"{URL}/v1/adapters", data={"name": name}, files=files, headers=HEADERS, timeout=60)
    card.raise_for_status()
    return f"{name}@{card.json()['version']}"


def arm_of(user: str, share: float, experiment: str = "spring") -> int:
    """Return 1 for `share` of all users and else 0. Another experiment draws anew."""
    number = int.from_bytes(sha256(f"{experiment}:{user}".encode()).digest()[:8])
    return int(number < share * 2**64)


def ask(model: str, text: str, user: str) -> str:
    messages = [{"role": "user", "content": text}]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, user=user)
    return answer.choices[0].message.content


arms = [upload("style", ADAPTERS / "snake-ia3"), upload("style", ADAPTERS / "snake")]

# Offline: both versions on questions whose answers are known, all in one batch.
known = {"quiet river": "quiet_river", "paper window": "paper_window", "silver cloud market": "silver_cloud_market"}
with ThreadPoolExecutor() as pool:
    for arm in arms:
        answers = pool.map(lambda text, arm=arm: ask(arm, text, "offline"), known)
        right = sum(answer == wanted for answer, wanted in zip(answers, known.values(), strict=True))
        print(f"{arm}: {right} of {len(known)} right")
# > of 3 right

# Online: a fifth of the users get the newer version.
users = [f"user-{number}" for number in range(20)]
chosen = {user: arms[arm_of(user, share=0.2)] for user in users}
with ThreadPoolExecutor() as pool:
    list(pool.map(lambda user: ask(chosen[user], "golden letter", user), users))
print(dict(sorted(Counter(chosen.values()).items())))
# > {'style@

# What each has answered is counted under /metrics by name, not by version: your own log keeps them apart, by the
# response's `model` field or its header x-peftserve-adapter.
httpx.delete(f"{URL}/v1/adapters/style", headers=HEADERS).raise_for_status()
