#!/usr/bin/env bash
# Prepares a Python environment for the other scripts; source it:  source launch/install.sh EXTRA [--no-venv]
# Leaves the environment active. A second call with nothing changed takes no time.
# Versions are those of constraints.txt, with which the tests ran; CONSTRAINTS=none leaves the choice to pip.
set -euo pipefail
if [[ -z "${1:-}" || "${1:-}" == -* ]]; then
  echo "usage: source launch/install.sh EXTRA [--no-venv]   (EXTRA as in pyproject.toml: demo, test)" >&2
  return 2 2>/dev/null || exit 2
fi
_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
_extra="$1"
if [[ "${2:-}" != "--no-venv" ]]; then
  if [[ ! -x "$_root/.venv/bin/python" ]]; then
    echo "install: making $_root/.venv"
    python3 -m venv "$_root/.venv"
  fi
  # shellcheck disable=SC1091
  source "$_root/.venv/bin/activate"
fi
_stamp="$(python -c 'import sys; print(sys.prefix)')/.fine-grained-vlm-$_extra"
if [[ ! -f "$_stamp" || "$_root/pyproject.toml" -nt "$_stamp" || "$_root/constraints.txt" -nt "$_stamp" ]]; then
  echo "install: torch first (a later one would replace the CPU wheel), then the project with [$_extra]"
  _pip=(python -m pip install --quiet --disable-pip-version-check)
  if [[ "${CONSTRAINTS:-}" != "none" ]]; then _pip+=(--constraint "$_root/constraints.txt"); fi
  "${_pip[@]}" "torch>=2.11,<2.14" 2> >(grep -v "^WARNING: Location" >&2)
  "${_pip[@]}" --editable "$_root[$_extra]" 2> >(grep -v "^WARNING: Location" >&2)
  touch "$_stamp"
fi
