#!/usr/bin/env sh
# Caltech-101, DistDiff's 100 classes: all of its tables on them. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce distdiff --datasets caltech-101 ${GPUS:+--devices $GPUS} "$@"
