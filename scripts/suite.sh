#!/bin/bash
# suite.sh NAME COMMAND...: runs one suite of tests, shows its output, and keeps how many tests
# passed and failed in .cache/results/NAME for the closing line of .ci/run. A command that prints no
# summary of ava's counts as one test.
#
# It ends whatever the tests do: a suite has SUITE_LIMIT_S seconds (1200 unless set), and one that takes longer
# fails, with what its processes were waiting for. The command writes to a file, not to a pipe, so
# that a process that a test has left behind cannot keep this script waiting; it is told of and ended.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=${1:?suite.sh NAME COMMAND...}
shift
limit_s=${SUITE_LIMIT_S:-1200}
mkdir -p .cache/results
log=.cache/results/$name.log
result=.cache/results/$name
rm -f "$result"

# Every process of the suite carries this in its environment; children inherit it.
mark=FIRSTLIGHT_SUITE=$name.$$.$EPOCHREALTIME

# Prints the ids of the processes that carry the mark and have not ended.
marked() {
  local directory
  for directory in /proc/[0-9]*; do
    [[ $(sed -n 's/^State:\s*\(.\).*/\1/p' "$directory/status" 2>/dev/null) != [ZX] ]] || continue
    # A look at the environment of a process can block on its memory map: not for longer than this.
    timeout 2 grep -qzxF "$mark" "$directory/environ" 2>/dev/null && echo "${directory#/proc/}"
  done
}

# Prints what each process does, and where in the kernel it waits.
describe() {
  local pid
  for pid in "$@"; do
    echo "--- $(timeout 2 ps -o pid=,ppid=,stat=,etimes=,wchan:30=,args= -p "$pid" | cut -c1-300)"
    head -8 "/proc/$pid/stack" 2>/dev/null
  done
}

echo "=== $name"
start=$SECONDS
: >"$log"
env "$mark" timeout --kill-after=30 "$limit_s" "$@" >"$log" 2>&1 </dev/null &
command=$!
trap 'kill -INT "$command" 2>/dev/null' INT
trap 'kill -TERM "$command" 2>/dev/null' TERM
tail --pid="$command" -n +1 -f "$log" &
shown=$!
(
  # Shortly before the end: afterwards nothing is left to look at.
  while kill -0 "$command" 2>/dev/null; do
    sleep 1
    ((SECONDS - start >= limit_s - 5)) || continue
    echo "=== $name: $limit_s s are over; still running:"
    mapfile -t pids < <(marked)
    describe "${pids[@]}"
    break
  done
) >>"$log" 2>&1 &
watch=$!
status=0
while kill -0 "$command" 2>/dev/null; do
  # A signal that is handled ends a wait early.
  wait "$command"
  status=$?
done
wait "$watch" "$shown"

# What ends by itself gets the time to do so.
for _ in {1..10}; do
  mapfile -t left < <(marked)
  ((${#left[@]} > 0)) || break
  sleep 1
done
if ((${#left[@]} > 0)); then
  echo "=== $name: left running, and ended now:"
  describe "${left[@]}"
  kill -KILL "${left[@]}" 2>/dev/null
fi

# ava: a line with a check mark for each test that passed; a summary of what did not:
# "1 test failed", "1 uncaught exception", ...
plain=$(sed 's/\x1b\[[0-9;]*[a-zA-Z]//g' "$log")
passed=$(grep -cE '^ *✔ ' <<<"$plain")
count() { grep -oE "^ *[0-9]+ $1" <<<"$plain" | awk '{ n += $1 } END { print n + 0 }'; }
failed=$(($(count 'tests? failed') + $(count 'hooks? failed') + $(count 'uncaught exceptions?') + $(count 'unhandled rejections?') + $(count 'tests? remained pending')))
if [[ $status -eq 0 && $((passed + failed)) -eq 0 ]]; then passed=1; fi
if [[ $status -ne 0 && $failed -eq 0 ]]; then failed=1; fi
echo "$passed $failed" >"$result"
echo "=== $name: $passed passed, $failed failed, $((SECONDS - start)) s"
[[ $failed -eq 0 && $status -eq 0 ]]
