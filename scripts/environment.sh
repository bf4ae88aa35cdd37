#!/usr/bin/env bash
# Makes .venv with the pinned dependencies, or brings it up to date; `make` calls it when pyproject.toml has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

if ! supported "$venv/bin/python"; then
  python=""
  for candidate in ${PYTHON:-} python3.11 python3.12 python3; do
    if supported "$candidate"; then python=$candidate && break; fi
  done
  if [ -z "$python" ]; then
    echo "error: expected Python 3.11 or 3.12, found $(python3 --version 2>&1); name one with PYTHON=/path/to/python" >&2
    exit 2
  fi
  rm -rf "$venv"
  "$python" -m venv "$venv" || {
    echo "error: $python cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2
    exit 2
  }
fi

log=$venv/install.log
echo "installing the pinned dependencies into $venv (minutes the first time; log in $log)"
if ! "$venv/bin/python" -m pip install --constraint constraints.txt --editable '.[dev]' >"$log" 2>&1; then
  tail -20 "$log" >&2
  echo "error: pip failed; the whole log is in $log" >&2
  exit 2
fi
