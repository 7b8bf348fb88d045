#!/usr/bin/env bash
# Everything that a machine with a GPU has to tell about the training step, in one command of under eight minutes.
#
#   bash benchmarks/accelerator.sh [FOLDER]              # default: accelerator-results
#   bash benchmarks/accelerator.sh --dry-run [FOLDER]    # the same commands on the CPU with tiny sizes: no results
#
# Needs torch with CUDA and the packages that docs/accelerators.md names; for compiled layers Triton, which torch's CUDA
# wheels bring along, and a C compiler. No internet, no data: models and batches are made from random numbers. FOLDER
# gets JSON files, and summary.txt with the tables. A part that fails, is too long or lacks a package does not stop the
# others; the exit status is 1 then. PYTHON=… chooses the interpreter.
set -uo pipefail
device=cuda
patience=1 # times the limits: how long a CPU takes says nothing here
if [ "${1:-}" = --dry-run ]; then device=cpu patience=8 && shift; fi
out=$(realpath -m "${1:-accelerator-results}")
cd "$(dirname "$0")/.." || exit 2
mkdir -p "$out" || exit 2
python=${PYTHON:-python}
seconds=475 # of all parts together
status=0
: > "$out/summary.txt"

say() { echo "$*" | tee -a "$out/summary.txt"; }

part() { # SECONDS NAME COMMAND...: with a limit, its output into the summary
    local limit=$(($1 * patience)) name=$2 begun=$SECONDS left=$((seconds * patience - SECONDS))
    shift 2
    if [ "$left" -lt 10 ]; then say "-- $name: left out, the time is used up" && status=1 && return; fi
    [ "$limit" -le "$left" ] || limit=$left
    say "== $name: $*"
    timeout --signal=INT --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$out/summary.txt"
    local ended=${PIPESTATUS[0]}
    say "-- $name: status $ended after $((SECONDS - begun)) s"
    [ "$ended" -eq 0 ] || status=1
}

lacks() { # MODULE...: those that cannot be imported
    "$python" -c 'import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])' "$@"
}

needs() { # NAME MODULE...: whether a part can run; what is missing is said
    local name=$1 lacking
    shift
    lacking=$(lacks "$@")
    if [ -z "$lacking" ]; then return 0; fi
    say "-- $name: left out, $python lacks $lacking"
    status=1
    return 1
}

missing=$(lacks torch transformers pydantic yaml numpy PIL safetensors psutil) || exit 2
if [ -n "$missing" ]; then
    echo "error: $python lacks $missing; docs/accelerators.md says what to bring to a machine without internet" >&2
    exit 2
fi
if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: torch sees no CUDA device; install torch with CUDA, or try the commands with --dry-run" >&2
    exit 2
fi
# Region texts come in few sizes, but not in one: segments that can grow keep the allocator from fragmenting.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

if [ "$device" = cuda ]; then
    preset=base images=256 fewer=64 memory=64 steps=200 repeats=5
    part 20 machine "$python" -m torch.utils.collect_env
else
    preset=tiny images=4 fewer=2 memory=2 steps=4 repeats=1
fi
step=("$python" -m benchmarks.step --preset "$preset" --device "$device" --repeats "$repeats")
# Stage 2 has 24 texts of regions an image; half as many images are taken where they do not fit.
part 70 stage1-256 "${step[@]}" --stage 1 --patches 256 --images "$images" --weights fp32 bf16 \
    --json "$out/stage1-256.json"
part 70 stage2-256 "${step[@]}" --stage 2 --patches 256 --images "$((images / 2))" --weights fp32 bf16 \
    --json "$out/stage2-256.json"
part 60 step-1024 "${step[@]}" --patches 1024 --images "$fewer" --json "$out/step-1024.json" --profile "$out/trace.json"
part 100 step-256-compiled "${step[@]}" --patches 256 --images "$((images / 2))" --weights bf16 --compile \
    --json "$out/step-256-compiled.json"
part 30 stage1-1024-recomputed "${step[@]}" --stage 1 --patches 1024 --images "$fewer" --recompute \
    --json "$out/stage1-1024-recomputed.json"
whole=(pyarrow simplejpeg webdataset matplotlib) # what the loader and tracking import
if needs zero-memory deepspeed "${whole[@]}"; then
    part 60 zero-memory "$python" -m benchmarks.device_checks --device "$device" --zero-memory --preset "$preset" \
        --images "$memory" --json "$out/zero-memory.json"
fi
if needs tests pytest pyarrow simplejpeg; then
    part 40 tests "$python" -m pytest -q -m accelerator -p no:cacheprovider --noconftest tests/accelerator
fi
if needs curves "${whole[@]}"; then
    part 70 curves "$python" -m benchmarks.device_checks --device "$device" --curves --steps "$steps" \
        --json "$out/curves.json"
fi
say "results in $out after $SECONDS s"
exit $status
