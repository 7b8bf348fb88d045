#!/usr/bin/env bash
# A stage by torchrun, which needs no ssh: start this on every host, with the same MASTER_ADDR and another NODE_RANK.
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node-1 bash launch/torchrun.sh stage1 [group.name=value …]
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node-1 bash launch/torchrun.sh stage1 [group.name=value …]
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
else
  if [[ -z "${MASTER_ADDR:-}" || -z "${NODE_RANK:-}" ]]; then
    echo "error: NNODES is $nodes, but MASTER_ADDR or NODE_RANK is not set; set both on every host" >&2
    exit 2
  fi
  place=(--nnodes "$nodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi
# no restarts by torchrun: a rank that ends takes the run down, and the next start resumes from the last checkpoint
exec "$python" -m torch.distributed.run "${place[@]}" --nproc-per-node "$processes" --max-restarts 0 \
  "$root/stages/$stage.py" "$@"
