# A node of the job's Ray: the head on the first node, the others join it. ray_node.sh HOST:PORT
folder=/tmp/ray-$SLURM_JOB_ID-$SLURM_NODEID # short, since Ray's sockets lie in it, and no other job's

# At the job's end all of Ray is killed at once: it keeps nothing, and Slurm waits only for its `KillWait`. Some of its
# processes outlive it, and Slurm finds those only where it uses cgroups; all have the variable.
leave() {
  trap '' TERM # Slurm may say it twice; `rm` must not hear it either
  while pids=$(grep -lsz "^RAY_OF_JOB=$folder\$" /proc/[0-9]*/environ | cut -d / -f 3); [ -n "$pids" ]; do
    kill -KILL $pids 2>/dev/null
    sleep 0.1
  done
  rm -rf "$folder" # when nobody is left who writes into it
}
trap leave EXIT
trap exit TERM

role=(--head "--node-ip-address=${1%:*}" "--port=${1#*:}" --include-dashboard=false)
if [ "$SLURM_NODEID" != 0 ]; then
  role=("--address=$1")
  for _ in {1..300}; do # until the head is there
    ! (: <"/dev/tcp/${1/://}") 2>/dev/null || break
    sleep 1
  done
fi
RAY_OF_JOB=$folder .venv/bin/ray start --block "${role[@]}" --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$folder" \
  --object-store-memory=500000000 >/dev/null &
wait $! # a signal ends this, but no command
