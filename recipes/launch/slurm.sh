#!/usr/bin/env bash
# sbatch recipes/launch/slurm.sh RECIPE RUN_FOLDER [--set a.b=v ...]
# One process a GPU on all nodes of the job; RUN_FOLDER must be on a file system that the nodes share. Five minutes
# before the job's time is up every process gets SIGTERM: the run saves, exits with 75, and the job goes back into the
# queue. It continues from the last checkpoint, on any number of nodes.
#SBATCH --job-name=compress
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

recipe=$1 run=$2
shift 2
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500 WORLD_SIZE=$SLURM_NTASKS

# shellcheck disable=SC2016  # expanded by each task
srun --kill-on-bad-exit=0 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec compress run "$@"' \
  compress "$recipe" --out "$run" "$@" &
step=$!

trap 'kill -TERM "$step"' TERM
wait "$step"
status=$?
trap - TERM
if kill -0 "$step" 2>/dev/null; then # the signal ended the first wait; the run is saving
  wait "$step"
  status=$?
fi
if ((status == 75)); then
  echo "Stopped before the end; back into the queue to go on from the last checkpoint in $run."
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
