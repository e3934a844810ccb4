#!/usr/bin/env sh
# Caltech-101, DreamDA's 101 classes: its Tables 3 and 5. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce dreamda/table3 dreamda/table3_pretrained dreamda/table5 --datasets caltech-101-faces ${GPUS:+--devices $GPUS} "$@"
