#!/usr/bin/env bash
# Stage 1. By hand on one machine:      bash launch/stage1.sh [group.name=value …]
# On several machines:                   deepspeed --hostfile hostfile --no_python launch/stage1.sh [group.name=value …]
# By hand, PROCESSES says how many processes run here (default: one a GPU, or one where there is none).
# Before a long run, with the run's own arguments:  bash launch/stage1.sh --dry-run …
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/stage.sh" stage1 "$@"
