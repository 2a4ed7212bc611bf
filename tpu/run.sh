#!/usr/bin/env bash
# Starts a command on all workers of a TPU VM, detached: it goes on when you log out. Set up the VM first (setup.sh).
#
#   ZONE=europe-west4-a RUN_BUCKET=gs://my-bucket/qa2 tpu/run.sh NAME -- python -m experiments.babilong --task qa2
#
#   ZONE, PROJECT   as for create.sh
#   RUN_BUCKET      gs:// folder that ~/qrag/runs is kept in: fetched before the start, sent every SYNC_SECONDS and at the end.
#                   One folder for one TPU. Without it, and without --run-dir gs://..., runs are lost with the VM.
#   SYNC_SECONDS    default 300
#   DRY_RUN         1: only print the command
#
# It runs in ~/qrag with ~/qrag/venv first on the PATH. Log: ~/qrag/job/log; exit code, once it has ended: ~/qrag/job/exit.
# Environment variables go before the command: -- env NAME=VALUE python -m ...
# One job at a time: the same command again changes nothing while it runs, another one is refused (64).

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments yes "$@"
SYNC_SECONDS=${SYNC_SECONDS:-300}
whole_number SYNC_SECONDS

if [[ -z $BUCKET && ${COMMAND[*]} != *gs://* ]]; then say "RUN_BUCKET is not set: run directories live on the VM alone and are lost with it"; fi
on_workers "$(remote bash qrag/src/tpu/vm_job.sh start "$(job_id "${COMMAND[@]}")" "$BUCKET" "$SYNC_SECONDS" -- "${COMMAND[@]}")"
