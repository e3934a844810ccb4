#!/usr/bin/env bash
# The tests, offline and on the CPU: all of them, or with --quick those that take under a minute together. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-dev.txt
. scripts/environment.sh

arguments=()
for argument in "$@"; do
    if [ "$argument" = --quick ]; then arguments+=(-m "not slow"); else arguments+=("$argument"); fi
done
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 8 ${arguments[@]+"${arguments[@]}"}
