#!/usr/bin/env sh
# Shenzhen tuberculosis: DreamDA's Table 3. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce dreamda/table3 dreamda/table3_pretrained --datasets shenzhen ${GPUS:+--devices $GPUS} "$@"
