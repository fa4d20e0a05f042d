#!/usr/bin/env bash
# The two-stage recipe at 22B with random weights, once, on a GPU: seconds and peak memory per stage are in the
# manifest. Usage: tests/perf/full_size.sh FOLDER [key=value ...]
set -euo pipefail
folder=$1
shift
python3 -m ltxgen +recipe=ltx23_two_stage artifacts=synthetic stages.base.steps=4 output.dir="$folder" "$@"
python3 - "$folder/manifest.json" <<'PY'
import json
import sys

manifest = json.load(open(sys.argv[1]))
print(manifest["versions"]["device_name"], manifest["versions"]["torch"])
for name, stage in manifest["stages"].items():
    peak = stage["peak_bytes"] / 2**30
    print(f"{name:<14} {stage['seconds']:8.2f} s   loading {stage['load_seconds']:7.2f} s   peak {peak:6.2f} GiB")
PY
