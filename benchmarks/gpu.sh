#!/usr/bin/env bash
# Everything that waits for a GPU, in one command of under 9 minutes: kernels against their references, the engine
# against PEFT on the device, with LoRA on several models and with every method on one, then the engine's speed beside
# transformers and PEFT. The table comes last.
#
#   benchmarks/gpu.sh [OUT_DIR]
#
# Runs in the Python that has torch for the GPU. Packages that it lacks are taken from ./wheels if that folder exists.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
if [ -d wheels ]; then python3 -m pip install --quiet --no-index --find-links wheels wheels/*.whl; fi
make --silent links
export PYTHONPATH=$PWD/.links
python3 -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print(torch.cuda.get_device_name())'

failed=0
timeout 150 python3 -m pytest tests/kernels || failed=1
timeout 140 python3 -m pytest --device cuda tests/end_to_end/test_engine_oracle.py -k 'llama or gemma2 or gpt2' || failed=1
timeout 120 python3 -m pytest --device cuda tests/end_to_end/test_methods.py -k 'in_one_batch and llama_biased and whole' || failed=1
timeout 120 python3 benchmarks/engine_vs_peft.py --device cuda --rounds 3 --out "$out/engine_vs_peft_gpu.json"
exit "$failed"
