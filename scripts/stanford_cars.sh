#!/usr/bin/env sh
# Stanford Cars: DistDiff's Tables 2 and 15 and Fig. 4, DreamDA's Tables 3 and 5. GPUS="0 1" chooses devices; options of python -m expansion.reproduce follow: --dry_run, --jobs FILE.
cd "$(dirname "$0")/.." && . scripts/environment.sh && exec "$PYTHON" -m expansion.reproduce distdiff/table2 distdiff/table15 distdiff/fig4 dreamda/table3 dreamda/table3_pretrained dreamda/table5 --datasets stanford_cars ${GPUS:+--devices $GPUS} "$@"
