# A node of the job's Ray: the head on the first node, the others join it. ray_node.sh HOST:PORT
temp=/tmp/ray-$SLURM_JOB_ID-$SLURM_NODEID # short, since Ray's sockets lie in it; no other job's
trap 'told=yes' TERM # first Ray ends, then its folder goes
trap 'rm -rf "$temp"' EXIT
if [ "$SLURM_NODEID" = 0 ]; then
  role=(--head "--node-ip-address=${1%:*}" "--port=${1#*:}" --include-dashboard=false)
else
  role=("--address=$1")
  until [ -n "$told" ] || (: <"/dev/tcp/${1/://}") 2>/dev/null; do sleep 1; done
fi
.venv/bin/ray start --block "${role[@]}" --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$temp" --object-store-memory=500000000 >/dev/null
code=$?
[ -n "$told" ] || exit "$code"
