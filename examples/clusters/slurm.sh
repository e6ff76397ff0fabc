#!/bin/bash
# A sweep on nodes of a Slurm cluster, which are a Ray cluster for as long as it lasts:
#
#   sbatch examples/clusters/slurm.sh sweep.yaml
#   sbatch examples/clusters/slurm.sh sweep.yaml --resume
#
# What follows the script's name is what `ranksweep launch` is given. Submit it from the folder
# that is to keep `.ranksweep/`, with the environment active that ranksweep is installed in; both on
# a file system that all nodes share. Edit the lines of #SBATCH for your site; the driver of the
# nodes must be 580 or newer (torch 2.13 is built for CUDA 13.0).
#SBATCH --job-name=ranksweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@180
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch $0 SWEEP.yaml [OPTION...]: as 'ranksweep launch' takes them" >&2
  exit 2
fi
gpus_per_node=${SLURM_GPUS_ON_NODE:?no GPUs are allotted: ask for them with --gpus-per-node}
groups=$((SLURM_JOB_NUM_NODES * gpus_per_node))
# One CPU of a node less than there are, for the driver and what is Ray's own.
cpus=$(((SLURM_CPUS_PER_TASK - 1) / gpus_per_node))

# Others on the network of the nodes may not send jobs to this Ray.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
# Sockets on a disk of the node's own, by a short path.
export RAY_TMPDIR=/tmp
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600

# The first node is the one that this script runs on.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
launch=$(mktemp)
# shellcheck disable=SC2016  # expanded there
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$first:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$gpus_per_node" -- \
  bash -c 'echo $$ > "$0"; exec ranksweep launch "$@"' "$launch" \
  --set cluster.address=auto --set "cluster.groups=$groups" \
  --set "cluster.resources_per_worker.CPU=$cpus" --set cluster.resources_per_worker.GPU=1 "$@" &
nodes=$!

# Three minutes before the time is up the sweep hears Ctrl-C: it closes its trials, and `--resume`
# goes on with it.
trap 'kill -INT "$(cat "$launch")"' USR1
while true; do
  status=0
  wait "$nodes" || status=$?
  kill -0 "$nodes" 2> /dev/null || break  # what ended the waiting was the signal
done
rm -f "$launch"
exit "$status"
