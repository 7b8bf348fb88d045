#!/usr/bin/env bash
# Installs the project with its test tools into .venv (or, with --no-venv, into the active environment) and runs pytest.
#   bash launch/test.sh                 the tests
#   bash launch/test.sh --fast          those that start no second process: a minute and a half
#   bash launch/test.sh --gates         first the linter, the formatter and the type checker, then the tests
#   bash launch/test.sh -m long         the long proofs; any further argument goes to pytest
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
where="" gates=""
while [[ "${1:-}" == --no-venv || "${1:-}" == --gates ]]; do
  case "$1" in --no-venv) where="--no-venv" ;; --gates) gates=yes ;; esac
  shift
done
# shellcheck disable=SC1091
source "$root/launch/install.sh" test "$where"
cd "$root"
if [[ -n "$gates" ]]; then bash launch/gates.sh; fi
echo "test: pytest $*"
# Three workers for two cores, because tests wait: for processes of theirs, for pauses, for stores that are gone. A file to
# each, in the order of tests/conftest.py: the longest files first, so that all end together.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # torch's threads of several workers would wait for each other's cores
exec python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
