#!/usr/bin/env bash
# Runs on the TPU VM; run.sh, babysit.sh and status.sh call it. There is one job at a time, in ~/qrag/job: id, command, pid, log, exit.
#
#   vm_job.sh start ID -- COMMAND...   starts the command, detached
#   vm_job.sh supervise -- COMMAND...  runs the command to its end
#   vm_job.sh status [ID]              prints qrag-job RUNNING | NONE | LOST (died without an exit code) | BUSY (another job) | exit code
set -euo pipefail
SELF=$(realpath "$0")
cd "$HOME/qrag"
export PATH="$PWD/venv/bin:$PATH" PYTHONUNBUFFERED=1
BOOT=$(cat /proc/sys/kernel/random/boot_id)

refuse() {
  printf 'error: %s\n' "$1" >&2
  exit 64
}

running() {
  [[ -e job/pid && ! -e job/exit && $(<job/boot) == "$BOOT" ]] && kill -0 "$(<job/pid)" 2>/dev/null
}

status() {
  local id=${1:-} mine=no word
  if [[ -e job/id && (-z $id || $(<job/id) == "$id") ]]; then mine=yes; fi
  if running; then
    if [[ $mine == yes ]]; then word=RUNNING; else word=BUSY; fi
  elif [[ $mine == no ]]; then
    word=NONE
  elif [[ -e job/exit ]]; then
    word=$(<job/exit)
  else
    word=LOST
  fi
  printf 'qrag-job %s\n' "$word"
}

start() {
  local id=$1
  shift 2
  if running; then
    [[ $(<job/id) == "$id" ]] || refuse "another job is running here: $(<job/command)"
    status "$id"
    return
  fi
  take_environment
  rm -rf job
  mkdir job
  printf '%s' "$id" >job/id
  printf '%q ' "$@" >job/command
  printf '%s' "$BOOT" >job/boot
  setsid nohup bash "$SELF" supervise -- "$@" >job/log 2>&1 </dev/null &
  printf '%s' "$!" >job/pid
  status "$id"
}

# Exports the variables in ~/qrag-env, which run.sh has sent, without expanding anything, and removes the file.
take_environment() {
  local file=$HOME/qrag-env line
  if [[ ! -e $file ]]; then return; fi
  chmod 600 "$file"
  while IFS= read -r line; do
    [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || continue
    export "${line?}"
  done <"$file"
  rm -f "$file"
}

# Waits for a process, even if a signal to this script interrupts `wait`; returns its exit code.
await() {
  local code
  while :; do
    interrupted=no
    code=0
    wait "$1" || code=$?
    if [[ $interrupted == no ]]; then return "$code"; fi
  done
}

supervise() {
  local child code=0
  shift
  mkdir -p job
  # However this script ends, it leaves an exit code in job/exit.
  trap 'code=$?; printf "%s" "$code" >job/exit.part; mv job/exit.part job/exit' EXIT
  "$@" &
  child=$!
  # Pass SIGTERM on: the run then saves, sends its files to the bucket, and exits with 75.
  trap 'if kill -TERM "$child" 2>/dev/null; then interrupted=yes; fi' TERM
  await "$child" || code=$?
  exit "$code"
}

"$@"
