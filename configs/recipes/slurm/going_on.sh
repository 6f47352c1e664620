# What the job scripts of this folder share; each sources it.
#
# `go_on COMMAND...` runs a command. When Slurm says that the time limit is near (`--signal=B:USR1@SECONDS`), the command
# is asked to keep what it has, and the job goes back into the queue. When it starts again, the same command goes on.

told= pid=
stop() { kill -TERM "$pid"; }
trap 'told=yes; [ -z "$pid" ] || stop' USR1
trap : TERM # of scancel or requeue, which every process of the job gets: when this shell ends, Slurm kills the others

go_on() {
  local code=1 job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # the array's id alone means all tasks
  if [ -z "$told" ]; then
    "$@" &
    pid=$!
    until wait "$pid"; code=$?; ! kill -0 "$pid" 2>/dev/null; do :; done # a signal ends one wait
  fi
  if [ -n "$told" ] && [ "$code" != 0 ]; then
    echo "the time limit is near: back into the queue"
    scontrol requeue "${job:-$SLURM_JOB_ID}" || echo "Slurm did not take the job back; submit it again to go on"
  fi
  return "$code"
}

# HOST:PORT on the first node; other jobs have another port.
meeting_point() {
  local name
  name=$(sinfo --noheader --Node --nodes="$SLURMD_NODENAME" --format=%o | head -n 1)
  echo "$(getent ahostsv4 "$name" | awk '{ print $1; exit }'):$((20000 + SLURM_JOB_ID % 10000))"
}
