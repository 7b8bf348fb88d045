#!/usr/bin/env bash
# Trains a small fine-grained model with the real machinery, on two CPU cores: draws scenes, trains a tokenizer, runs
# stage 1 and stage 2 under DeepSpeed with two processes, evaluates after each, and shows a table and pictures.
#   bash launch/demo.sh              installs into .venv first (reused when present)
#   bash launch/demo.sh --no-venv    uses the active environment
# Started again, it goes on from what is there. Everything it makes lies under runs/demo.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
where=""
if [[ "${1:-}" == "--no-venv" ]]; then where="--no-venv"; shift; fi
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0; fi
# shellcheck disable=SC1091
source "$root/launch/install.sh" demo "$where"
cd "$root"
exec python launch/demo/run.py "$@"
