#!/usr/bin/env bash
# Shows the state of a TPU VM, the state of its job (RUNNING, NONE, LOST or an exit code), and the end of the log of each worker.
#
#   ZONE=europe-west4-a tpu/status.sh NAME
#
#   ZONE, PROJECT   as for create.sh
#   LOG_LINES       number of log lines to show, default 20
#   DRY_RUN         1: only print the commands

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments no "$@"
LOG_LINES=${LOG_LINES:-20}
whole_number LOG_LINES
look="bash qrag/src/tpu/vm_job.sh status; tail -n $LOG_LINES qrag/job/log"

if [[ $DRY_RUN == 1 ]]; then
  call gcloud compute tpus queued-resources describe "$NAME" "${FLAGS[@]}" --format='value(state.state)'
  on_workers "$look"
  exit 0
fi
found=$(state)
printf '%s: %s\n' "$NAME" "$found"
if [[ $found == ACTIVE ]]; then on_workers "$look"; fi
