#!/usr/bin/env sh
# STL-10, 40 labels and the 100,000 unlabelled images: DreamDA's Table 3. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce dreamda/table3 dreamda/table3_pretrained --datasets stl10 ${GPUS:+--devices $GPUS} "$@"
