#!/usr/bin/env bash
# Starts a command on all workers of a TPU VM, detached: it goes on when you log out. Set up the VM first (setup.sh).
#
#   ZONE=europe-west4-a tpu/run.sh NAME -- python -m experiments.babilong --task qa2 --run-dir gs://my-bucket/qa2
#
#   ZONE, PROJECT   as for create.sh
#   DRY_RUN         1: only print the command
#
# With --run-dir gs://BUCKET/NAME the command keeps its run in the bucket; without it, runs are lost with the VM.
# It runs in ~/qrag with ~/qrag/venv first on the PATH. Log: ~/qrag/job/log; exit code, once it has ended: ~/qrag/job/exit.
# Environment variables go before the command: -- env NAME=VALUE python -m ...
# One job at a time: the same command again changes nothing while it runs, another one is refused (64).

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments yes "$@"
if [[ ${COMMAND[*]} != *gs://* ]]; then say "no --run-dir gs://BUCKET/NAME: run directories live on the VM alone and are lost with it"; fi
on_workers "$(remote bash qrag/src/tpu/vm_job.sh start "$(job_id "${COMMAND[@]}")" -- "${COMMAND[@]}")"
