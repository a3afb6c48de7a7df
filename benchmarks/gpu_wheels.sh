#!/usr/bin/env bash
# What a bare GPU machine (Linux x86-64, Python 3.12, with torch and transformers) lacks, as wheels into .whl/: 26 MB.
set -eu
PY=${PYTHON:-.venv/bin/python}
VERSION=${GPU_PYTHON:-3.12}
mkdir -p .whl
take() {
    "$PY" -m pip download -q --no-deps --only-binary=:all: --python-version "$VERSION" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .whl "$1"
}
constrained() { grep -i "^${1%%==*}==" constraints.txt || echo "$1"; }
for name in pydantic pydantic_core annotated-types typing-inspection datasets dill multiprocess zstandard lm_eval evaluate \
    more-itertools hypothesis sortedcontainers liger-kernel torchao nltk jsonlines pytablewriter DataProperty mbstrdecoder \
    pathvalidate tabledata tcolorpy typepy tqdm-multiprocess chardet gguf==0.19.0 sentencepiece; do
    take "$(constrained "$name")"
done
"$PY" -m pip wheel -q --no-deps -w .whl rouge-score==0.1.2 sqlitedict word2number
du -sh .whl
