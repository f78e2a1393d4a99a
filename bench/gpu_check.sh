#!/usr/bin/env bash
# All that only an NVIDIA GPU can show, by one command and in under nine minutes: builds the module, runs the tests
# that need a GPU, looks for bad memory accesses and races, times what one step's exchange costs, and compares
# fastrnn.torch with torch.nn. Needs nvcc, cmake, ninja, pybind11, pytest and a torch that sees the GPU; no network.
#
#   bench/gpu_check.sh [--dry-run] [--only tests|measurements] [FOLDER]
#
# Results go to FOLDER (default: bench/gpu_results), eight files at most. A stage that fails or runs past its limit is
# recorded and the next begins; the exit code is 0 where all passed, 1 where not, 3 without a GPU. --dry-run shows
# the commands and runs what needs no GPU. In the environment: GPU_CHECK_SECONDS, for all stages (default: 510), and
# GPU_CHECK_BUILD, the folder to build in (default: build/gpu).
set -uo pipefail
cd "$(dirname "$0")/.."

dry= only=
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    --only)
      only=${2:-}
      shift
      ;;
    -*) only=$1 ;;
    *) break ;;
  esac
  shift
done
case $only in
  "" | tests | measurements) ;;
  *)
    echo "usage: bench/gpu_check.sh [--dry-run] [--only tests|measurements] [FOLDER], got $only" >&2
    exit 2
    ;;
esac
results=${1:-bench/gpu_results}
build=${GPU_CHECK_BUILD:-build/gpu}
total=${GPU_CHECK_SECONDS:-510}
mkdir -p "$results" "$build"
results=$(cd "$results" && pwd)
build=$(cd "$build" && pwd)
rm -f "$results"/{summary.txt,build.log,checks.log,measure.log,exchange.json,sweep.jsonl,sweep.md,roofline.md}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cores=$(env -u OMP_NUM_THREADS nproc)
SECONDS=0

say() { printf '\n== %s (at %d s)\n' "$*" "$SECONDS"; }
wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }
left() { echo $((total - SECONDS > $1 ? total - SECONDS - $1 : 1)); } # seconds, but for so many
least() { echo $(($1 < $2 ? $1 : $2)); }

# run NAME LIMIT LOG COMMAND...: a stage. What it says goes to LOG, how it ended to a file of its own, for stages may
# run side by side.
run() {
  local name=$1 limit=$2 log=$3 start=$SECONDS status result
  shift 3
  if [ -n "$dry" ]; then
    printf '%-12s within %3d s: %s\n' "$name" "$limit" "$*"
    return 0
  fi
  { printf '\n== %s: %s\n' "$name" "$*"; timeout -k 10 "$limit" "$@" 2>&1; } >"$work/$name.log"
  status=$?
  case $status in
    0) result=passed ;;
    124 | 137) result="over its ${limit} s" ;;
    *) result="failed ($status)" ;;
  esac
  cat "$work/$name.log" >>"$log"
  printf '%s\t%s\t%d\n' "$name" "$result" $((SECONDS - start)) >"$work/$name.stage"
  printf '%-12s %s, %d s\n' "$name" "$result" $((SECONDS - start))
  return "$status"
}

# record NAME RESULT: of a stage that does not run. One that is left out has not passed.
record() {
  printf '%-12s %s\n' "$1" "$2"
  printf '%s\t%s\t0\n' "$1" "$2" >"$work/$1.stage"
}

# ---- what there is

architecture=$(python3 -c 'import torch; print("".join(map(str, torch.cuda.get_device_capability())))' 2>/dev/null)
if [ -z "$architecture" ]; then
  echo "no GPU: torch sees none here, or is not installed; --dry-run runs what needs none"
  [ -n "$dry" ] || exit 3
  architecture=90
fi
{
  uname -a
  nvidia-smi -L
  nvcc --version | tail -2
  cmake --version | head -1
  python3 -c 'import sys, torch, numpy; print(sys.version, torch.__version__, numpy.__version__)'
} >"$results/build.log" 2>&1

# ---- build: the module is wanted first, for all else waits for it

say "build"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
options=(
  -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CUDA_ARCHITECTURES=$architecture" "-DFASTRNN_VERSION=$version"
  -DFASTRNN_CUDA=ON -DFASTRNN_PYTHON=ON -DFASTRNN_TOOLS=ON
  -DFASTRNN_BASELINE=ON # the CPU only checks, and its kernels take the longest to compile
  "-DPython_EXECUTABLE=$(command -v python3)" "-Dpybind11_DIR=$(python3 -m pybind11 --cmakedir 2>/dev/null)"
)
# Where the toolkit comes without cuBLAS, the package of torch's has its headers.
headers=$(python3 -c 'import nvidia.cu13 as n; print(list(n.__path__)[0])' 2>/dev/null)/include
toolkit=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /)")")")/include
if [ -f "$headers/cublas_v2.h" ] && [ ! -f "$toolkit/cublas_v2.h" ]; then
  options+=("-DFASTRNN_CUBLAS_INCLUDE=$headers")
fi
if command -v nvcc >/dev/null; then
  if [ -n "$dry" ]; then
    # The folder of a dry run is not the build's.
    nvcc -std=c++20 -O3 "-arch=sm_$architecture" bench/exchange.cu -o "$work/exchange" && echo "exchange.cu compiles"
  else
    run exchange.cu 120 "$results/build.log" \
      nvcc -std=c++20 -O3 "-arch=sm_$architecture" bench/exchange.cu -o "$build/exchange" &
  fi
fi
compile() {
  run configure 60 "$results/build.log" cmake -S . -B "$build" -G Ninja "${options[@]}" &&
    run module $((total * 6 / 10)) "$results/build.log" cmake --build "$build" --target _core --parallel "$cores"
}
# Python's files beside the module, as a wheel has them.
assemble() {
  local package=$build/package/fastrnn
  rm -rf "$package"
  mkdir -p "$package"
  cp -R python/fastrnn/. "$package/"
  rm -f "$package"/_core*.so
  cp "$build"/_core*.so "$package/"
}
built=
compile && built=yes
wait
if [ -n "$built" ] && [ -z "$dry" ]; then
  assemble || built=
  PYTHONPATH=$build/package${PYTHONPATH:+:$PYTHONPATH}
  export PYTHONPATH
fi

# ---- tests and sanitizers, side by side: nothing is timed

say "tests and sanitizers"
limit=$(least 150 "$(left 130)")
[ "$only" = tests ] && limit=$(left 15)
tests() {
  local files=() file
  for file in tests/test_gpu.py tests/test_cuda.py tests/test_torch_cuda.py; do
    [ -f "$file" ] && files+=("$file")
  done
  # Whatever else pytest finds here may warn, and warnings are errors; one of torch's that is on its way out, too.
  export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
  local arguments=(-q -p no:cacheprovider -o faulthandler_timeout=60 --durations=10)
  arguments+=(-W "ignore:Please use the new API settings")
  python3 -c 'import xdist' 2>/dev/null && arguments+=(-p xdist.plugin -n "$(least 6 "$cores")")
  # Stopped by the limit, it still says what has failed.
  local main='import signal, sys, pytest; signal.signal(signal.SIGTERM, signal.default_int_handler); '
  main+='sys.exit(pytest.main(sys.argv[1:]))'
  run tests "$limit" "$results/checks.log" python3 -c "$main" "${arguments[@]}" "${files[@]}"
}
check() {
  local tool=$1
  run "$tool" "$limit" "$work/$tool.checks" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 10 \
    python3 bench/gpu_small.py --seconds $((limit * 7 / 10))
}
if ! wanted tests; then
  for stage in tests memcheck racecheck initcheck synccheck tools; do record "$stage" "not asked for"; done
elif [ -n "$built" ]; then
  tests &
  for tool in memcheck racecheck initcheck synccheck; do
    if [ -n "$dry" ] || command -v compute-sanitizer >/dev/null; then
      check "$tool" &
    else
      record "$tool" "left out: compute-sanitizer is not installed"
    fi
  done
  run tools "$limit" "$results/build.log" cmake --build "$build" --parallel 4 &
  wait
  cat "$work"/*.checks >>"$results/checks.log" 2>/dev/null
else
  for stage in tests memcheck racecheck initcheck synccheck tools; do record "$stage" "left out: no module"; done
fi

# ---- measurements, with the GPU to themselves

say "measurements"
measure() { # NAME LIMIT FILE COMMAND...: what it prints is a result
  local name=$1 limit=$2 file=$3
  shift 3
  run "$name" "$limit" "$results/measure.log" bash -c '"${@:2}" >"$1"' bash "$file" "$@"
}
if ! wanted measurements; then
  record exchange "not asked for"
elif [ -x "$build/exchange" ] || [ -n "$dry" ]; then
  measure exchange "$(least 40 "$(left 60)")" "$results/exchange.json" "$build/exchange"
else
  record exchange "left out: exchange.cu was not compiled"
fi
if ! wanted measurements; then
  for stage in sweep table roofline; do record "$stage" "not asked for"; done
elif [ -n "$built" ]; then
  # Time for the processes' starts, and for what comes after.
  run sweep "$(left 35)" "$results/measure.log" \
    python3 bench/gpu_sweep.py "$results/sweep.jsonl" --verbose --seconds "$(left 65)"
  measure table 10 "$results/sweep.md" python3 bench/gpu_sweep.py "$results/sweep.jsonl" --table
  measure roofline "$(least 60 "$(left 2)")" "$results/roofline.md" \
    python3 bench/gpu_roofline.py "$results/sweep.jsonl" --ncu 20
else
  for stage in sweep table roofline; do record "$stage" "left out: no module"; done
fi

# ---- without a GPU: what can run, runs

if [ -n "$dry" ]; then
  say "dry run"
  failed=0
  try() { "$@" || { echo "failed: $*"; failed=1; }; }
  try bash -n bench/gpu_check.sh
  if command -v nvcc >/dev/null; then try test -x "$work/exchange"; fi
  try python3 bench/gpu_sweep.py "$results/sweep.jsonl" --dry-run --seconds 6 --batch 0.0005
  try python3 bench/gpu_sweep.py "$results/sweep.jsonl" --table >"$results/sweep.md"
  try python3 bench/gpu_roofline.py "$results/sweep.jsonl" --dry-run >"$results/roofline.md"
  python3 bench/gpu_small.py --seconds 20
  case $? in 0 | 3) ;; *) failed=1 ;; esac
  python3 -m pytest -q --collect-only tests/test_gpu.py | tail -3
  case ${PIPESTATUS[0]} in 0 | 5) ;; *) failed=1 ;; esac # 5: all are for a GPU
  [ $failed = 0 ] && echo "what needs no GPU works here"
  exit $failed
fi

# ---- summary

status=0
{
  printf '| %-12s | %-40s | %7s |\n' stage result seconds
  printf '| %s | %s | %s: |\n' ------------ ---------------------------------------- ------
  for stage in exchange.cu configure module tools tests memcheck racecheck initcheck synccheck exchange sweep table \
    roofline; do
    if [ -f "$work/$stage.stage" ]; then
      IFS=$'\t' read -r name result seconds <"$work/$stage.stage"
    else
      name=$stage result="not reached" seconds=0
    fi
    printf '| %-12s | %-40s | %7d |\n' "$name" "$result" "$seconds"
  done
  printf '\n%d s in all; logs and results in %s\n' "$SECONDS" "$results"
} >"$results/summary.txt"
grep -qE 'failed|over its|left out|not reached' "$results/summary.txt" && status=1
for file in "$work"/*.stage; do
  IFS=$'\t' read -r name result _ <"$file"
  if [ "$result" != passed ] && [ -f "$work/$name.log" ]; then
    printf '\n-- end of %s\n' "$name"
    tail -n 20 "$work/$name.log" | cut -c 1-300
  fi
done
# The head of the sweep's table: everything but its rows.
[ -f "$results/sweep.md" ] && sed '/^| cell | pass | kind | rows | form/,$d' "$results/sweep.md" | tail -n +3
cat "$results/summary.txt"
exit $status
