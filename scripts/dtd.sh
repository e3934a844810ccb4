#!/usr/bin/env sh
# Describable Textures: DistDiff's Fig. 4. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce distdiff/fig4 --datasets dtd ${GPUS:+--devices $GPUS} "$@"
