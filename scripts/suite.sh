#!/bin/bash
# suite.sh NAME COMMAND...: runs one suite of tests, shows its output, and keeps how many tests
# passed and failed in .cache/results/NAME for the closing line of .ci/run. A command that prints no
# summary of ava's counts as one test.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=${1:?suite.sh NAME COMMAND...}
shift
mkdir -p .cache/results
log=.cache/results/$name.log
result=.cache/results/$name
rm -f "$result"
echo "=== $name"
start=$SECONDS
"$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

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
