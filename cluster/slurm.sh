#!/bin/bash
#SBATCH --job-name=ssdd
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --exclusive
#SBATCH --requeue
# A Ray cluster on the nodes of one Slurm job, and the method on it:
#   sbatch cluster/slurm.sh --preset photographs --data /shared/mine --workspace /shared/mine-ssdd
# The repository, its .venv (`make .venv/installed`), data and workspace lie where all nodes see them. A job that is
# requeued goes on where it was.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?start it with sbatch}"
export PATH="$PWD/.venv/bin:$PATH" # `ray symmetric-run` calls `ray`
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_AUTH_MODE=token # the user's ~/.ray/auth_token, which all nodes see
ray get-auth-token --generate > /dev/null
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 # seconds; Ray starts slowly from a shared disk

exec srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" \
  -- env RAY_ADDRESS="$head:6379" python ray_jobs/dynamic.py "$@"
