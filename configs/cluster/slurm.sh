#!/bin/bash
# Starts a Ray cluster for one Slurm job, with token authentication. From the repository's root:
#   sbatch configs/cluster/slurm.sh python jobs/train_global.py /shared/prepared --config configs/global.yaml
# The repository with its .venv, and all given paths, must be on a file system that all nodes share. Use absolute paths,
# also for train.storage: the job runs in a temporary copy of the repository. See docs/cluster.md.
#SBATCH --job-name=mmh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --output=mmh-%j.log

set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch $0 python jobs/NAME.py ARGUMENTS" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:?run this through sbatch}"
source .venv/bin/activate

# Anyone who can reach Ray's ports could run code as you. So head, workers and client share a random token that only you
# can read.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/mmh-$SLURM_JOB_ID.token"
export RAY_USAGE_STATS_ENABLED=0
# Runs and models are stored on your tracking server if you set one, else in a file that outlives the job.
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-sqlite:///$SLURM_SUBMIT_DIR/mlflow.db}"
mkdir -p "$HOME/.ray"
(umask 077; python -c "import secrets; print(secrets.token_hex(32), end='')" >"$RAY_AUTH_TOKEN_PATH")
steps=()
clean_up() {
  [ ${#steps[@]} -eq 0 ] || kill "${steps[@]}" 2>/dev/null || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap clean_up EXIT

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))  # different ports for jobs that share a node
dashboard=$((port + 10000))
resources=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")

srun --nodes=1 --ntasks=1 --nodelist="$head_node" ray start --head --block "${resources[@]}" \
  --node-ip-address="$head_ip" --port="$port" --dashboard-host="$head_ip" --dashboard-port="$dashboard" &
steps+=($!)
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  others=$((SLURM_JOB_NUM_NODES - 1))
  sleep 20  # the head must listen before the others join
  srun --nodes="$others" --ntasks="$others" --exclude="$head_node" ray start --block "${resources[@]}" \
    --address="$head_ip:$port" &
  steps+=($!)
fi

python - "$head_ip:$port" "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import sys, time, ray

address, wanted = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + 300
while True:
    try:
        ray.init(address=address, log_to_driver=False)
        alive = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
    except (ConnectionError, RuntimeError, ValueError):  # no head, or no raylet on this node, yet
        alive = 0
    if alive >= wanted:
        break
    if time.monotonic() > deadline:
        sys.exit(f"only {alive} of {wanted} nodes joined Ray at {address} within 300 s: see the log above")
    time.sleep(5)
PYTHON

# Uploads the working folder without what .gitignore names (.venv, demo, ...); the job's exit code becomes 0 or 1.
ray job submit --address "http://$head_ip:$dashboard" --working-dir . \
  --metadata-json "{\"slurm_job_id\": \"$SLURM_JOB_ID\"}" -- "$@"
