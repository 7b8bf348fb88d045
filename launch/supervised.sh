#!/usr/bin/env bash
# A stage by DeepSpeed's launcher, started again by itself when a machine fails:
#   bash launch/supervised.sh stage1 [--hostfile hostfile] [--max-restarts 10] [group.name=value …]
# With --dry-run it starts once: the largest step, a checkpoint, an evaluation batch, a table, and the end.
# It goes on from the newest whole checkpoint, on the hosts that still answer. See docs/operations.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python}" -m pipeline.supervise run "$@"
