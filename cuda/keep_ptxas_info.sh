#!/usr/bin/env bash
# Runs a compiler and keeps what ptxas says about each kernel beside the object, for cuda/COSTS.md.
#
#   keep_ptxas_info.sh COMPILER [ARGUMENT ...] -o OBJECT ...
set -uo pipefail
object=
for ((i = 1; i < $#; ++i)); do
  if [ "${!i}" = -o ]; then next=$((i + 1)); object=${!next}; fi
done
"$@" 2>"$object.stderr"
status=$?
grep -v '^ptxas info' "$object.stderr" >&2
grep -E '^ptxas info.*(Compiling entry|Used [0-9]+ registers)' "$object.stderr" >"$object.ptxas"
rm -f "$object.stderr"
exit $status
