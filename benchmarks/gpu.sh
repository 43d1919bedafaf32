#!/usr/bin/env bash
# All that waits for a GPU, in parts that are chosen by name, in the order given; without a name, all of them in this one:
#
#   check       the kernels against float64, then the engine on the device: PEFT's tokens, graphs, sampler, all methods
#   decode      a decode step of the engine beside its floor, without and with adapters
#   attention   paged attention beside torch's own
#   bypass      the bypasses beside vLLM's, SGLang's, PEFT's and torch's, and beside the base's products
#   peft        the engine beside transformers and PEFT
#
#   benchmarks/gpu.sh [--out DIR] [--seconds N] [--device cpu] [PART...]
#
# What is printed goes to DIR/gpu.log too, as it comes; DIR is benchmarks/results unless it is said. All of it ends within
# N seconds (520): what finds no time any more is named. The exit status is 1 if anything failed or was stopped, or if an
# engine gave up its graphs. --device cpu is a rehearsal at small sizes, of what needs no GPU, and takes longer.
#
# Runs in the Python that has torch for the GPU; it needs peft, pytest, hypothesis and msgspec beside. Packages that it
# lacks are taken from ./wheels if that folder exists, and vLLM's and SGLang's kernels from benchmarks/peers/.wheels, which
# benchmarks/peers/wheels.py makes with a network.
set -uo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/results budget=520 device=cuda parts=()
while (($#)); do
  case $1 in
    --out) out=$2; shift ;;
    --seconds) budget=$2; shift ;;
    --device) device=$2; shift ;;
    check | decode | attention | bypass | peft) parts+=("$1") ;;
    *) echo "there is no part $1" >&2; exit 2 ;;
  esac
  shift
done
((${#parts[@]})) || parts=(check decode attention bypass peft)
mkdir -p "$out" || exit
exec > >(tee "$out/gpu.log") 2>&1
if [ -d wheels ]; then python3 -m pip install --quiet --no-index --no-deps wheels/*.whl || exit; fi
make --silent links || exit
export PYTHONPATH=$PWD/.links PYTHONUNBUFFERED=1
python3 -c "
import sys, torch, transformers, triton, msgspec, peft, pytest
print(f'torch {torch.__version__}, triton {triton.__version__}, transformers {transformers.__version__}', end=', ')
print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')
sys.exit('$device' == 'cuda' and not torch.cuda.is_available())" || exit

failures=() pace=1
if [ "$device" = cpu ]; then pace=5; fi

# at_most SECONDS COMMAND...: stopped after so long, and left out once the budget is nearly spent
at_most() {
  local left=$((budget - SECONDS)) seconds=$(($1 * pace)) log status
  shift
  ((seconds < left)) || seconds=$left
  if ((seconds < 20)); then failures+=("no time was left for: $*"); return; fi
  echo "== at $SECONDS s: $*"
  log=$(mktemp)
  timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  if ((status == 124 || status == 137)); then failures+=("stopped after $seconds s: $*")
  elif ((status)); then failures+=("failed: $*"); fi
  if grep -q 'runs without CUDA graphs' "$log"; then failures+=("without graphs: $*"); fi
  rm "$log"
}
# Unknown options in the configuration are those of plugins that these tests do not need.
tests() {
  local seconds=$1
  shift
  at_most "$seconds" python3 -m pytest -p no:cacheprovider -W ignore::pytest.PytestConfigWarning --maxfail 5 --durations 3 \
    -o log_cli=true -o log_cli_level=WARNING "$@"
}
on_device() { tests "$@" --device "$device"; }
bench() { at_most "$1" python3 -m peftserve.kernels.bench --device "$device" --out "$out" "${@:2}"; }

check() {
  tests 120 tests/kernels --ignore tests/kernels/bench --ignore tests/kernels/test_triton_kernels.py
  at_most 25 python3 benchmarks/attention.py --check
  on_device 60 tests/end_to_end/test_triton_engine.py tests/server/engine/sampling
  on_device 90 tests/end_to_end/test_engine_oracle.py -k 'llama or gemma2 or sinks'
  on_device 90 tests/end_to_end/test_methods.py -k 'in_one_batch and llama_biased and whole'
}
decode() {
  local sizes=()
  if [ "$device" = cpu ]; then sizes=(--device cpu --dtype float32 --shape tiny --layers 2 --sequences 1 4 --context 32 --rounds 1); fi
  at_most 150 python3 benchmarks/decode_step.py "${sizes[@]}" --out "$out/decode_step.json"
}
attention() {
  if [ "$device" = cpu ]; then at_most 60 python3 benchmarks/attention.py --check; return; fi
  at_most 90 python3 benchmarks/attention.py --out "$out/attention.json"
}
bypass() {
  if [ "$device" = cpu ]; then bench 60 --shape smollm-135m --phase decode --minutes 0.1; return; fi
  bench 150 --shape llama-8b --dtype bfloat16 --jobs 12 --phase decode --minutes 2
  bench 60 --shape llama-8b --dtype bfloat16 --jobs 12 --phase prefill --minutes 0.8
  for step in '1 1' '16 16' '64 64' '64 1'; do
    at_most 30 python3 benchmarks/overlap.py --tokens "${step% *}" --adapters "${step#* }"
  done
}
peft() {
  local sizes=(--rounds 2)
  if [ "$device" = cpu ]; then sizes=(--rounds 1 --requests 2 --prompt-tokens 8 --output-tokens 4); fi
  at_most 80 python3 benchmarks/engine_vs_peft.py --device "$device" "${sizes[@]}" --out "$out/engine_vs_peft_gpu.json"
}

for part in "${parts[@]}"; do "$part"; done
echo "== $SECONDS s in all: ${#failures[@]} failures"
((${#failures[@]} == 0)) || { printf '   %s\n' "${failures[@]}"; exit 1; }
