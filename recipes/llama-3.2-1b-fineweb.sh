#!/usr/bin/env bash
# The seed paper's run step by step: the four commands behind `compress run llama-3.2-1b-fineweb.yaml`.
# Each can be run again: what is done is kept, and a training that was cut goes on.
set -euo pipefail

TEACHER=${TEACHER:-meta-llama/Llama-3.2-1B}
RUN=${RUN:-runs/llama-3.2-1b-half-depth}
TASKS=paper

# 1. Prune: every second block goes, the last stays.
[ -f "$RUN/student-init/prune.json" ] || compress prune "$TEACHER" "$RUN/student-init" --keep alternate

# 2. Distill: 2.2B tokens of FineWeb, 0.8 forward KL + 0.2 cross-entropy, into $RUN/student.
compress distill --teacher "$TEACHER" --student "$RUN/student-init" \
  --data hub:HuggingFaceFW/fineweb:sample-10BT --tokens 2.2B --alpha 0.8 --temperature 1.0 --out "$RUN" \
  --set data.seq_len=2048 --set distill.lr=3e-4 --set distill.batch_tokens=524288 --set distill.precision=bf16

# 3. Evaluate: teacher, cut student, healed student, on the same items.
for pair in "teacher $TEACHER" "student-init $RUN/student-init" "student $RUN/student"; do
  read -r name model <<<"$pair"
  [ -f "$RUN/eval/$name.json" ] ||
    compress eval "$model" --teacher "$TEACHER" --tasks "$TASKS" --text "$RUN/data" --out "$RUN/eval/$name.json"
done

# 4. Report: report.json, report.md and report.html.
compress report "$RUN"
