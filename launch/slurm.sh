#!/usr/bin/env bash
# One process per GPU on any number of nodes. After `make setup EXTRA=cuda` in a folder that all nodes see, from that folder:
#   sbatch --nodes=2 launch/slurm.sh --config=configs/resnet50.py --workdir=runs/resnet50 --config.data.root=PATH
#SBATCH --job-name=resnet_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

# All GPUs of a node are visible to each of its tasks, and JAX takes the one of the task's number: no --gpus-per-task.
# --signal (and a preemption with a grace time) sends SIGTERM to the tasks, not to this shell; they save and end with 75.
# (Do not forward a signal to srun instead: at SIGTERM it kills its tasks at once.)
export JAX_PLATFORMS=cuda,cpu
code=0
srun --kill-on-bad-exit=0 --wait=120 .venv/bin/python train.py --distributed "$@" || code=$?
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
