#!/usr/bin/env bash
# A stage by torchrun, which needs no ssh: start this on every host, with the same MASTER_ADDR and another NODE_RANK.
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node-1 bash launch/torchrun.sh stage1 [group.name=value …]
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node-1 bash launch/torchrun.sh stage1 [group.name=value …]
# NNODES=1:4 starts with what is there and goes on with what is left; NODE_RANK is not needed then.
# MAX_RESTARTS: restarts after a failure, from the newest whole checkpoint (default 3).
# --dry-run among the arguments: the largest step, a checkpoint, an evaluation batch, a table, and the end.
# On one machine: bash launch/torchrun.sh stage1 …   PROCESSES: processes a host (default: one a GPU, or one).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
stage="${1:-}"
case "$stage" in
  stage1 | stage2) shift ;;
  *)
    echo "error: stage is '$stage'; give stage1 or stage2, then settings as group.name=value" >&2
    exit 2
    ;;
esac
python="${PYTHON:-python}"
processes="${PROCESSES:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
nodes="${NNODES:-1}"
if [[ "$nodes" == 1 ]]; then
  place=(--standalone)
elif [[ -z "${MASTER_ADDR:-}" ]]; then
  echo "error: NNODES is $nodes, but MASTER_ADDR is not set; set it on every host" >&2
  exit 2
elif [[ "$nodes" == *:* ]]; then # elastic: hosts find each other, and those that are left go on
  place=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}"
    --rdzv-id "${RUN_ID:-fine-grained-vlm}")
elif [[ -z "${NODE_RANK:-}" ]]; then
  echo "error: NNODES is $nodes, but NODE_RANK is not set; set both on every host" >&2
  exit 2
else
  place=(--nnodes "$nodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi
# A store of its own for every start of the ranks: torchrun's shared one still holds the addresses of those that died.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
restarts="${MAX_RESTARTS:-3}"
for argument in "$@"; do # a dry run that fails has given its answer
  case "$argument" in --dry-run) restarts=0 ;; esac
done
# A restarted rank waits (10 s, 20 s, 40 s …), and a run that fails at one step twice refuses to go on.
exec "$python" -m torch.distributed.run "${place[@]}" --nproc-per-node "$processes" \
  --max-restarts "$restarts" "$root/stages/$stage.py" "$@"
