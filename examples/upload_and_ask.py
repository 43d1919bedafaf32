"""Upload an adapter and ask it with OpenAI's client, whole and as a stream; see what answered.

make serve                           # in another terminal: the demo, on http://127.0.0.1:8000
python examples/upload_and_ask.py    # needs openai, which brings httpx
"""

import os
from pathlib import Path

import httpx
from openai import NotFoundError, OpenAI

URL = os.environ.get("PEFTSERVE_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("PEFTSERVE_API_KEY", "none")  # of a server with --api-key-file
FOLDER = Path(__file__).resolve().parents[1] / "server/demo/adapters/json"

# The upload is no route of OpenAI's: one form with the two files that PEFT wrote.
files = [("files", (path.name, path.read_bytes())) for path in sorted(FOLDER.glob("adapter_*"))]
headers = {"authorization": f"Bearer {KEY}"}
card = httpx.post(f"{URL}/v1/adapters", data={"name": "facts"}, files=files, headers=headers, timeout=60)
print(card.raise_for_status().json()["method"])
# > LORA

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
messages = [{"role": "user", "content": "Anna bought 12 red apples in Paris."}]
answer = client.chat.completions.create(model="facts", messages=messages, temperature=0)
print(answer.choices[0].message.content)
# > {"name":"Anna","action":"bought","count":12,"item":"red apples","city":"Paris"}

# Adapters are models like any other to the client: the base has no parent, an adapter's parent is the base.
print(client.models.retrieve("facts").parent)
# > demo

# A stream, and the header that says which version answers, for as long as this request runs.
with client.chat.completions.with_streaming_response.create(
    model="facts", messages=messages, temperature=0, stream=True
) as response:
    print(response.headers["x-peftserve-adapter"])
    for chunk in response.parse():
        print(chunk.choices[0].delta.content or "", end="")
print()
# > facts@

# A name that is not there is an error, never an answer of the base.
try:
    client.chat.completions.create(model="no-such-adapter", messages=messages)
except NotFoundError as error:
    print(error.code)
# > model_not_found

httpx.delete(f"{URL}/v1/adapters/facts", headers=headers).raise_for_status()
