#!/usr/bin/env bash
# launch/stage.sh STAGE [arguments]: what stage1.sh and stage2.sh share.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
stage="$1"
shift
python="${PYTHON:-python}"
if [[ -n "${LOCAL_RANK:-}${SLURM_PROCID:-}${OMPI_COMM_WORLD_RANK:-}" ]]; then
  exec "$python" "$root/stages/$stage.py" "$@" # a launcher started this process as one of many
fi
for argument in "$@"; do # answers, not runs
  case "$argument" in --help | -h | --print-config) exec "$python" "$root/stages/$stage.py" "$@" ;; esac
done
if [[ -z "${PROCESSES:-}" ]]; then
  PROCESSES="$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')"
fi
exec "$python" -m pipeline.supervise.one_host --processes "$PROCESSES" "$root/stages/$stage.py" "$@"
