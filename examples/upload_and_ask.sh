#!/usr/bin/env bash
# Upload an adapter with curl, ask it, make it the default, replace it, and take it away again.
#
#     make serve                       # in another terminal: the demo, on http://127.0.0.1:8000
#     bash examples/upload_and_ask.sh
#
# The adapter is a copy of one of the demo's own; any folder that PEFT's save_pretrained wrote will do. With a key
# (--api-key-file), add  -H "authorization: Bearer $KEY"  to every call.
set -euo pipefail
cd "$(dirname "$0")/.."
url=${PEFTSERVE_URL:-http://127.0.0.1:8000}
folder=server/demo/adapters/snake

upload() { # the two files of an adapter, under one field name
  curl -sS --fail-with-body "$url/v1/adapters" -F name=words \
    -F files=@"$1/adapter_config.json" -F files=@"$1/adapter_model.safetensors"
  echo
}

ask() { # $1: what goes into the `model` field
  curl -sS --fail-with-body "$url/v1/chat/completions" -H 'content-type: application/json' -d '{
    "model": "'"$1"'", "temperature": 0, "messages": [{"role": "user", "content": "quiet river bridge"}]}'
  echo
}

card=$(upload "$folder") # 201: checked against the base, on disk, and ready. The card says what it is.
echo "$card"
first=words@$(sed -E 's/.*"version":([0-9]+).*/\1/' <<<"$card") # a number is never used twice, not even after a deletion
ask words
# > "name":"words"
# > "content":"quiet_river_bridge"

# What answers "model": "default", and every request that names no model:
curl -sS --fail-with-body -X PUT "$url/v1/default-adapter" -H 'content-type: application/json' -d '{"adapter": "words"}'
echo
ask default
# > {"adapter":"words"}
# > "model":"words@

# The same name again is its next version. `words` is the newest now, `words@1` stays what it was.
upload server/demo/adapters/title
ask words
ask "$first"
# > "rank":32
# > "content":"Quiet River Bridge"
# > "content":"quiet_river_bridge"

curl -sS --fail-with-body "$url/v1/adapters/$first"
echo
# > "method":"LORA","rank":4

# Requests that run finish; new ones get 404. The default is the bare base again.
curl -sS --fail-with-body -X DELETE "$url/v1/adapters/words"
echo
# > {"id":"words","object":"adapter","deleted":true}
