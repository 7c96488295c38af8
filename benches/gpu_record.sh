#!/usr/bin/env bash
# Tests, benches and roofline on this machine's GPU, without network: one CSV record and a picture beside it.
#
#   benches/gpu_record.sh [RECORD.csv]            builds with `cargo --offline`, runs, writes target/gpu_record.csv
#   benches/gpu_record.sh --build DIR             builds only, and puts all that runs into DIR
#   benches/gpu_record.sh --built DIR [RECORD.csv]    runs what is in DIR, at the path of the checkout that built it
#
# Environment: RUNNER, a command that runs another (RUNNER="ci/gpu-lab run lavapipe --" is a software GPU);
# TESTS, names of tests to run, instead of all that need a device; WGPU_ADAPTER_NAME and the rest as tests, benches
# and example read them. Exit status 1 if anything failed; the record then says what.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=${TESTS:-forward invariants properties rules extremes functions fuzz buffers layer runner attend limits tune}
read -ra runner <<<"${RUNNER:-}"
built=target/gpu_record
build=true run=true
case "${1:-}" in
    --build) built=${2:?a folder}; run=false; shift 2 ;;
    --built) built=${2:?a folder}; build=false; shift 2 ;;
esac
record=${1:-target/gpu_record.csv}

# Cargo's line `Executable ... (PATH)` for each of the arguments.
executables() { cargo "$@" --offline 2>&1 | tee -a /dev/stderr | sed -n 's/.*Executable.*(\(.*\))$/\1/p'; }

if $build; then
    mkdir -p "$built"
    cp "$(executables test --release --no-run --test all)" "$built/tests"
    for name in kernels first_call; do
        cp "$(executables bench --no-run --bench "$name")" "$built/bench-$name"
    done
    cargo build --release --offline --example roofline
    cp target/release/examples/roofline "$built/roofline"
fi
$run || exit 0

mkdir -p "$(dirname "$record")"
rm -f "$record" "$built/tests.csv" "$built/first_call.csv"
failed=false
for name in $tests; do
    echo "== test $name"
    begin=$(date +%s%3N)
    status=0
    ${runner[@]+"${runner[@]}"} "$built/tests" "$name::" >"$built/$name.log" 2>&1 || status=$?
    ms=$(($(date +%s%3N) - begin))
    counts=$(sed -n 's/^test result: [a-zA-Z]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$built/$name.log" | tail -1)
    [ "$status" -eq 0 ] || { failed=true; tail -30 "$built/$name.log"; }
    echo "$name: ${counts:-did not end, status $status},$ms" | tee -a "$built/tests.csv"
done

echo "== benches"
export WGPU_ATTENTION_RECORD=$record
${runner[@]+"${runner[@]}"} "$built/bench-kernels" --bench || failed=true
unset WGPU_ATTENTION_RECORD
WGPU_ATTENTION_FIRST_CALL=$built/first_call.csv ${runner[@]+"${runner[@]}"} "$built/bench-first_call" || failed=true
echo "== roofline"
${runner[@]+"${runner[@]}"} "$built/roofline" "${record%.csv}.png" || failed=true

# The rest of the record, with the date, adapter and driver of its first line.
[ -s "$record" ] || { echo "the bench left no record"; exit 1; }
where=$(sed -n '2s/^\([^,]*,"\(""\|[^"]\)*","\(""\|[^"]\)*"\),.*/\1/p' "$record")
if [ -f "$built/first_call.csv" ]; then
    sed "s|^\(.*\),\(.*\)$|first call,\1,\2,,,|" "$built/first_call.csv"
fi | while read -r line; do echo "$where,$line"; done >>"$record"
sed 's|^\(.*\),\(.*\)$|test,\1,\2,,,|' "$built/tests.csv" | while read -r line; do echo "$where,$line"; done >>"$record"
echo "written: $record, $(($(wc -l <"$record") - 1)) lines; ${record%.csv}.png"
! $failed
