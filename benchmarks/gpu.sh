#!/usr/bin/env bash
# All that waits for a GPU, in parts that do not need each other and are chosen by name. For a GPU that is lent for
# fifteen minutes, in calls of at most five:
#
#   benchmarks/gpu.sh --out DIR correctness decode
#   benchmarks/gpu.sh --out DIR kernels attention prefill
#   benchmarks/gpu.sh --out DIR --vllm-kit KIT peers
#   benchmarks/gpu.sh --out DIR serve methods           # and: peft, sweep, suite
#
# `benchmarks/gpu.sh --help` says what the parts are and what else can be set. Whatever fails or takes too long, the
# others run. Figures are in DIR/results.jsonl as soon as they are known, all that is printed in DIR/gpu.log, and the
# last lines name what did not go well. --device cpu is a rehearsal at small sizes, of what needs no GPU.
#
# Runs in the Python that has torch for the GPU ($PYTHON, or python3); it needs peft, pytest, hypothesis and msgspec
# beside, and `serve` what the server needs. Packages that it lacks are taken from ./wheels if that folder exists; with
# a network:
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#     --platform manylinux2014_x86_64 -d wheels msgspec fastapi starlette uvicorn pydantic pydantic-core \
#     typing-inspection annotated-types orjson python-multipart httptools
#
# vLLM's and SGLang's kernels come from benchmarks/peers/.wheels, which benchmarks/peers/wheels.py makes with a network.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
if [ -d wheels ]; then
  packages=$(mktemp -d)
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$packages" wheels/*.whl || exit
fi
make --silent links || exit
export PYTHONPATH=$PWD/.links${packages:+:$packages}${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
device=cuda
for word in "$@"; do
  case $word in
    cpu | --device=cpu) device=cpu ;;
    --help | -h) device= ;;
  esac
done
[ -z "$device" ] || "$python" -c "
import sys, torch, transformers, triton, msgspec, peft, pytest
print(f'torch {torch.__version__}, triton {triton.__version__}, transformers {transformers.__version__}', end=', ')
print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')
sys.exit('$device' == 'cuda' and not torch.cuda.is_available())" || exit
exec "$python" -m benchmarks.gpu "$@"
