#!/usr/bin/env bash
# From a bare Debian 12 to answers: installs what is missing, builds, starts the server on the two
# bundled models, asks it about a picture, a recording and both, prints the answers, stops it.
# Repeat runs build only what changed.
#
#   bash server/run.sh            the demonstration
#   bash server/run.sh --serve    stays in the foreground until Ctrl-C
#   PORT=50052 bash server/run.sh    another port than 50051
set -euo pipefail
cd "$(dirname "$0")/.."

port=${PORT:-50051}
models=config/models
binary=build/cpu/server/sensorium
picture_out=build/cpu/points.png
log=build/cpu/serve.log

say() { printf '\n== %s\n' "$*"; }
die() { printf 'run: %s\n' "$*" >&2; exit 1; }

serve=false
case "${1:-}" in
  "") ;;
  --serve) serve=true ;;
  --help|-h) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) die "unknown argument '$1' (--help tells)" ;;
esac
[[ $port =~ ^[0-9]+$ && $port -ge 1 && $port -le 65535 ]] ||
  die "PORT is '$port'; it must be a number from 1 to 65535"

# Before minutes of building: what would stop it at the end.
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  die "port $port is in use; stop who uses it or choose another: PORT=50052 bash server/run.sh"
fi
free_mib=$(df -Pm . | awk 'NR == 2 {print $4}')
need_mib=1024
if [ ! -x "$binary" ] && [ "$free_mib" -lt "$need_mib" ]; then
  die "$free_mib MiB are free on this disk; building needs $need_mib MiB"
fi

say "1/4 packages"
bash docker/install-deps.sh
gcc_major=$(g++ -dumpversion | cut -d. -f1)
[ "$gcc_major" -ge 12 ] || die "g++ is version $gcc_major; this needs 12 or newer"

say "2/4 building (minutes the first time)"
jobs=$(nproc)
memory_gib=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
if [ "$memory_gib" -lt "$jobs" ]; then jobs=$(( memory_gib > 1 ? memory_gib : 1 )); fi
cmake --preset cpu >/dev/null
cmake --build --preset cpu --target sensorium -- -j "$jobs"

if $serve; then
  say "serving on port $port; Ctrl-C stops it"
  exec "$binary" serve --config config/demo.yaml --listen "0.0.0.0:$port"
fi

say "3/4 starting the server on port $port"
"$binary" serve --config config/demo.yaml --listen "127.0.0.1:$port" >"$log" 2>&1 &
server=$!
stop() {
  if kill -0 "$server" 2>/dev/null; then kill -TERM "$server"; wait "$server" || true; fi
}
trap stop EXIT
for _ in $(seq 300); do
  if "$binary" probe "127.0.0.1:$port" >/dev/null 2>&1; then break; fi
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; die "the server did not start"; }
  sleep 0.1
done
"$binary" probe "127.0.0.1:$port"

say "4/4 asking it, through gRPC, from another process"
at=(--server "127.0.0.1:$port")
ask() {  # ask WHAT COMMAND...: the question, the answer, the timings
  printf '\n-- %s\n' "$1"
  shift
  "$binary" "$@" "${at[@]}" --timing
}
ask "wide.png: Describe this image." \
  generate --model molmo-mini --image $models/molmo-mini/wide.png --prompt "Describe this image."
ask "shapes.png: How many red circles are there?" \
  generate --model molmo-mini --image $models/molmo-mini/shapes.png \
  --prompt "How many red circles are there?"
ask "shapes.png: Point to the blue square. (drawn into $picture_out)" \
  generate --model molmo-mini --image $models/molmo-mini/shapes.png \
  --prompt "Point to the blue square." --draw "$picture_out"
ask "morning.wav: transcribe, each window by itself" \
  transcribe $models/whisper-mini/morning.wav --model whisper-mini --no-condition-on-previous-text
ask "shapes.png and question.wav: a spoken question about a picture" \
  generate --model molmo-mini --image $models/molmo-mini/shapes.png \
  --audio $models/whisper-mini/question.wav

stop
trap - EXIT
wait "$server" 2>/dev/null || true
printf '\nThe server answered and stopped; its log is in %s.\n' "$log"
echo "To keep it serving: bash server/run.sh --serve"
