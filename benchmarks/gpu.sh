#!/usr/bin/env bash
# Everything a GPU is asked, in one command on a bare machine that has torch and transformers and no network:
#     bash benchmarks/gpu.sh [--only PART ...] [--smoke]
# `make gpu-wheels` before, where there is a network, puts what such a machine lacks into .whl/.
# Results go to OUT (benchmarks/results/gpu by default), after every part; GPU_SECONDS is the time for all (480).
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu}
PY=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
SITE=$(mktemp -d /tmp/site.XXXXXX)
trap 'rm -rf "$SITE"' EXIT
if compgen -G '.whl/*.whl' >/dev/null; then
    "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" .whl/*.whl || exit 1
fi
# The project itself needs no install: the package is a folder of links to the source tree.
mkdir -p "$SITE/tree"
cp -rs "$PWD/compress" "$SITE/tree/compress"
for room in prune distill evaluate; do cp -rs "$PWD/$room" "$SITE/tree/compress/$room"; done
export PYTHONPATH="$SITE/tree:$SITE${PYTHONPATH:+:$PYTHONPATH}"
"$PY" benchmarks/gpu.py --out "$OUT" --seconds "${GPU_SECONDS:-480}" "$@" 2>&1 | tee "$OUT/log"
