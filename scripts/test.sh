#!/usr/bin/env bash
# All tests: offline, on the CPU, about 7 minutes on two cores after installation. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 8 "$@"
