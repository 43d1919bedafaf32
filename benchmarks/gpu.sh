#!/usr/bin/env bash
# Everything that waits for a GPU, in one command of under 9 minutes: the kernels against their references; then how
# fast they are, beside vLLM's, SGLang's, PEFT's and torch's, and beside the base's products; paged attention beside
# torch's; then, as far as time goes, the engine against PEFT on the device, a decode step of it beside its floor, and its
# speed beside transformers and PEFT. The tables come last.
#
#   benchmarks/gpu.sh [OUT_DIR]
#
# Runs in the Python that has torch for the GPU. Packages that it lacks are taken from ./wheels if that folder exists,
# and vLLM's and SGLang's kernels from benchmarks/peers/.wheels, which benchmarks/peers/wheels.py makes with a network.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out" || exit
if [ -d wheels ]; then python3 -m pip install --quiet --no-index --find-links wheels wheels/*.whl || exit; fi
make --silent links || exit
export PYTHONPATH=$PWD/.links PYTHONUNBUFFERED=1
python3 -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print(torch.cuda.get_device_name())' || exit

failed=0
budget=520  # seconds for all of it

# at_most SECONDS COMMAND...: stopped after so long, and left out once the budget is nearly spent
at_most() {
  local seconds=$(($1 < budget - SECONDS ? $1 : budget - SECONDS))
  shift
  if ((seconds < 20)); then echo "no time left for: $*"; return; fi
  timeout --kill-after=5 "$seconds" "$@" || { failed=1; echo "failed, or stopped after $seconds s: $*"; }
}
kernels() {
  at_most "$1" python3 -m peftserve.kernels.bench --device cuda --shape llama-8b --dtype bfloat16 --phase "$2" \
    --minutes "$3" --jobs 12 --out "$out" >"$out/kernels_$2.txt"
}

at_most 120 python3 -m pytest tests/kernels --ignore tests/kernels/bench --ignore tests/kernels/test_triton_kernels.py
kernels 150 decode 2
kernels 60 prefill 0.8
: >"$out/overlap.txt"
for step in '1 1' '16 16' '64 64' '64 1'; do
  at_most 30 python3 benchmarks/overlap.py --tokens "${step% *}" --adapters "${step#* }" >>"$out/overlap.txt"
done
at_most 20 python3 benchmarks/attention.py --check
at_most 70 python3 benchmarks/attention.py --out "$out/attention.json" >"$out/attention.txt"
at_most 90 python3 -m pytest --device cuda tests/end_to_end/test_engine_oracle.py -k 'llama or gemma2 or sinks'
at_most 40 python3 -m pytest --device cuda tests/end_to_end/test_triton_engine.py tests/server/engine/sampling
at_most 120 python3 benchmarks/decode_step.py --out "$out/decode_step.json" >"$out/decode_step.txt"
at_most 60 python3 -m pytest --device cuda tests/end_to_end/test_methods.py -k 'in_one_batch and llama_biased and whole'
at_most 60 python3 benchmarks/engine_vs_peft.py --device cuda --rounds 2 --out "$out/engine_vs_peft_gpu.json"
cat "$out"/decode_step.txt "$out"/overlap.txt "$out"/attention.txt "$out"/kernels_decode.txt "$out"/kernels_prefill.txt
echo "$SECONDS s in all"
exit "$failed"
