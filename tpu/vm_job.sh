#!/usr/bin/env bash
# Runs on the TPU VM, called by run.sh, babysit.sh and status.sh. One job at a time, in ~/qrag/job: id, command, pid, log, exit.
#
#   vm_job.sh start ID BUCKET SECONDS -- COMMAND...   BUCKET '': runs are not kept outside this VM
#   vm_job.sh status [ID]                             qrag-job RUNNING | NONE | LOST (died without an exit code) | BUSY (another) | code
#
# Checkpoints reach the bucket in an order that leaves a whole one there whenever the VM dies: new files, then the list of what is
# whole (BUCKET.complete, one object), then what that list no longer names is removed. Fetching drops what the list does not name.
set -euo pipefail
SELF=$(realpath "$0")
cd "$HOME/qrag"
export PATH="$PWD/venv/bin:$PATH" PYTHONUNBUFFERED=1
BOOT=$(cat /proc/sys/kernel/random/boot_id)
UNFINISHED='.*orbax-checkpoint-tmp.*|(.*/)?\.[^/]*\.tmp$'

refuse() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-64}"
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
  local id=$1 bucket=$2 seconds=$3
  shift 4
  if running; then
    [[ $(<job/id) == "$id" ]] || refuse "another job is running here: $(<job/command)"
    status "$id"
    return
  fi
  rm -rf job
  mkdir job
  printf '%s' "$id" >job/id
  printf '%q ' "$@" >job/command
  printf '%s' "$BOOT" >job/boot
  setsid nohup bash "$SELF" supervise "$bucket" "$seconds" -- "$@" >job/log 2>&1 </dev/null &
  printf '%s' "$!" >job/pid
  status "$id"
}

steps() { (cd "$1" && find . -type d -regex '.*/checkpoints/[a-z]+/[0-9]+' | sed 's|^\./||' | LC_ALL=C sort); }

fetch() {
  local bucket=$1 step
  if [[ -e runs && -e bucket ]]; then
    [[ $(<bucket) == "$bucket" ]] || refuse "qrag/runs is kept in $(<bucket), not in $bucket; use that, or move runs away"
    return
  fi
  if gcloud storage cat "$bucket.complete" >complete 2>job/fetch; then
    [[ ! -e runs ]] || refuse "qrag/runs and $bucket both hold runs; move one of them away"
    rm -rf runs.part
    mkdir runs.part
    gcloud storage rsync --recursive "$bucket" runs.part || refuse "cannot fetch $bucket" 75
    steps runs.part | while read -r step; do
      if ! grep -qxF "$step" complete; then rm -rf "runs.part/$step"; fi
    done
    mv runs.part runs
  elif grep -q 'matched no objects' job/fetch; then
    : >complete
    mkdir -p runs
  else
    cat job/fetch >&2
    refuse "cannot read $bucket" 75
  fi
  printf '%s' "$bucket" >bucket
}

# Worker 0 alone writes.
send() {
  local bucket=$1 step
  [[ $(worker) == 0 ]] || return 0
  steps runs >complete.new || return 1
  gcloud storage rsync --recursive --exclude="$UNFINISHED" runs "$bucket" || return 1
  gcloud storage cp complete.new "$bucket.complete" || return 1
  LC_ALL=C comm -13 complete.new complete | while read -r step; do
    gcloud storage rm --recursive "$bucket/$step" || echo "could not remove $bucket/$step; it only takes room" >&2
  done
  mv complete.new complete
}

worker() {
  curl -sf --max-time 5 -H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number ||
    { [[ $HOSTNAME =~ -w-([0-9]+)$ ]] && printf '%s' "${BASH_REMATCH[1]}"; } || printf 0
}

# Waits for a process although a signal to us interrupts `wait`; gives its exit code.
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
  local bucket=$1 seconds=$2 second child code=0 sent=no
  shift 3
  # Whatever ends this script ends it with an exit code in job/exit.
  trap 'code=$?; printf "%s" "$code" >job/exit.part; mv job/exit.part job/exit' EXIT
  if [[ -n $bucket ]]; then fetch "$bucket"; fi
  "$@" &
  child=$!
  # SIGTERM is passed on: the run saves, exits with 75, and is sent below.
  trap 'if kill -TERM "$child" 2>/dev/null; then interrupted=yes; fi' TERM
  if [[ -n $bucket ]]; then
    while :; do
      for ((second = 0; second < seconds; second++)); do
        kill -0 "$child" 2>/dev/null || break 2
        sleep 1
      done
      send "$bucket" &
      await $! || echo "could not send runs to $bucket; trying again in $seconds s" >&2
    done
  fi
  await "$child" || code=$?
  if [[ -n $bucket ]]; then
    for second in 0 5 10; do
      sleep "$second"
      if send "$bucket"; then sent=yes && break; fi
    done
    if [[ $sent == no ]]; then
      echo "could not send runs to $bucket; they are on this VM alone" >&2
      if ((code == 0)); then code=75; fi
    fi
  fi
  exit "$code"
}

"$@"
