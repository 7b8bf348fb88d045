#!/usr/bin/env bash
# What has to hold before any test runs: the linter, the formatter and the type checker. Changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
echo "gates: ruff check"
python -m ruff check .
echo "gates: ruff format --check"
python -m ruff format --check .
echo "gates: mypy"
python -m mypy
