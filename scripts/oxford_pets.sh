#!/usr/bin/env sh
# Oxford-IIIT Pets: all of DreamDA's tables on them. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce dreamda --datasets oxford_pets ${GPUS:+--devices $GPUS} "$@"
