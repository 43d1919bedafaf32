"""Ask a mixture: one answer of several adapters at once, each with a weight.

    make serve                 # in another terminal: the demo, on http://127.0.0.1:8000
    python examples/mix.py     # needs openai

A mixture is the base plus the weighted sum of what each adapter adds at each module: exact, whatever their methods and
ranks, and chosen anew by every request. docs/methods.md says which adapters are no sum, and so in no mixture.
"""

import os

from openai import BadRequestError, OpenAI

URL = os.environ.get("PEFTSERVE_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("PEFTSERVE_API_KEY", "none"))


def ask(weights: dict[str, float]) -> str:
    """Return what the mixture makes of a text. `adapters` is no field of OpenAI's, so it goes along as an extra."""
    answer = client.chat.completions.create(
        model="demo",  # beside a mixture: the base's id, "default", or nothing
        messages=[{"role": "user", "content": "quiet river bridge"}],
        temperature=0,
        extra_body={"adapters": [{"name": name, "weight": weight} for name, weight in weights.items()]},
    )
    return f"{answer.model}: {answer.choices[0].message.content}"


print(ask({"snake": 1.0}))
print(ask({"snake": 0.5, "snake-ia3": 0.5}))  # two methods, trained for the same task
print(ask({"snake": 0.9, "title": 0.1}))
print(ask({"snake": 0.0}))  # nothing of it: the base
# > snake@1*1: quiet_river_bridge
# > snake-ia3@1*0.5: quiet_river_bridge
# > snake@1*0: quiet river bridge

try:
    ask({"snake": 0.5, "snake-prefix": 0.5})
except BadRequestError as error:
    print(error.body["message"])
# > snake-prefix@1 has a KV prefix and cannot be mixed
