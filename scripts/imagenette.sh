#!/usr/bin/env sh
# ImageNette: DistDiff's Table 2. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce distdiff/table2 --datasets imagenette ${GPUS:+--devices $GPUS} "$@"
