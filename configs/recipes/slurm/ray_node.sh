# A node of the job's Ray: the head on the first node, the others join it. ray_node.sh HOST:PORT
export RAY_OF_JOB=/tmp/ray-$SLURM_JOB_ID-$SLURM_NODEID # its folder: short, since sockets lie in it, and no other job's

# Of Ray's processes some outlive it, and Slurm finds them only where it uses cgroups: all have the variable.
leave() {
  kill -KILL $(grep -lsz "^RAY_OF_JOB=$RAY_OF_JOB\$" /proc/[0-9]*/environ | cut -d / -f 3) 2>/dev/null
  rm -rf "$RAY_OF_JOB"
}
trap leave EXIT
trap 'told=yes' TERM # first Ray ends

role=(--head "--node-ip-address=${1%:*}" "--port=${1#*:}" --include-dashboard=false)
if [ "$SLURM_NODEID" != 0 ]; then
  role=("--address=$1")
  for _ in {1..300}; do # until the head is there
    [ -z "$told" ] || exit 0
    ! (: <"/dev/tcp/${1/://}") 2>/dev/null || break
    sleep 1
  done
fi
.venv/bin/ray start --block "${role[@]}" --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$RAY_OF_JOB" \
  --object-store-memory=500000000 >/dev/null
