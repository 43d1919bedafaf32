#!/usr/bin/env bash
# Run all clients of other people against a server with the demo, and put what they can do into docs/clients.md.
set -euo pipefail
cd "$(dirname "$0")/.."
make clients
export PATH="$PWD/.venv/bin:$PATH"
url=http://127.0.0.1:${PORT:-8765}
state=$(mktemp -d)
peftserve serve --port "${PORT:-8765}" --state-dir "$state" --log-level warning \
    --override-generation-config '{"temperature": 0}' &
trap 'kill %1; wait; rm -r "$state"' EXIT
until curl --silent --fail --output /dev/null "$url/health/ready"; do sleep 1; done
python -m benchmarks.clients.table --url "$url" --out docs/clients.md
python -m benchmarks.clients.table --url "$url" --out docs/clients.md --others
