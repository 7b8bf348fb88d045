#!/usr/bin/env bash
# Everything that a machine with a GPU has to tell about the training step, in one command of under eight minutes.
#
#   bash benchmarks/accelerator.sh [FOLDER]        # default: accelerator-results
#
# Needs torch with CUDA and the packages of pyproject.toml (extra "test"); for compiled layers Triton, which torch's CUDA
# wheels bring along. No internet, no data: models and batches are made from random numbers. FOLDER gets JSON files,
# and summary.txt with the tables. A part that fails does not stop the others; the exit status is 1 then.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-accelerator-results}
mkdir -p "$out"
python=${PYTHON:-python}
status=0
: > "$out/summary.txt"

part() { # SECONDS NAME COMMAND...: with a limit, its output into the summary
    local limit=$1 name=$2 begun=$SECONDS
    shift 2
    echo "== $name: $*" | tee -a "$out/summary.txt"
    timeout --signal=INT --kill-after=15 "$limit" "$@" 2>&1 | tee -a "$out/summary.txt"
    local ended=${PIPESTATUS[0]}
    echo "-- $name: status $ended after $((SECONDS - begun)) s" | tee -a "$out/summary.txt"
    [ "$ended" -eq 0 ] || status=1
}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: torch sees no CUDA device; install torch with CUDA, or run python -m benchmarks.step on the CPU" >&2
    exit 2
fi
# Region texts come in few sizes, but not in one: segments that can grow keep the allocator from fragmenting.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

part 20 machine "$python" -m torch.utils.collect_env
part 60 tests "$python" -m pytest -q -m accelerator -p no:cacheprovider tests
base=("$python" -m benchmarks.step --preset base --device cuda)
part 60 step-256 "${base[@]}" --patches 256 --images 256 --json "$out/step-256.json"
part 60 step-1024 "${base[@]}" --patches 1024 --images 64 --json "$out/step-1024.json" --profile "$out/trace.json"
part 110 step-256-compiled "${base[@]}" --patches 256 --images 256 --compile --json "$out/step-256-compiled.json"
part 40 step-1024-recomputed "${base[@]}" --stage 1 --patches 1024 --images 64 --recompute \
    --json "$out/step-1024-recomputed.json"
part 70 curves "$python" -m benchmarks.device_checks --curves --json "$out/curves.json"
part 60 zero-memory "$python" -m benchmarks.device_checks --zero-memory --json "$out/zero-memory.json"
echo "results in $out after $SECONDS s"
exit $status
