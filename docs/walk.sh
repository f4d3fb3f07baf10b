#!/usr/bin/env bash
# A walk through the API with curl and jq: submit, wait, log, retry, cancel, a preset of one's own, explain.
# Needs a running `nommerd up`, its token, and a clip that the feeder may read:
#   TOKEN=$(cat ~/.local/share/nommerd/token) docs/walk.sh holiday.mov
set -euo pipefail

url=${NOMMERD_URL:-http://127.0.0.1:8001}
token=${TOKEN:?Set TOKEN to what is in the feeder\'s token file.}
clip=$(realpath "${1:?Which clip?}")
folder=$(dirname "$clip")/walk-$$ # the outputs; new at each run
mkdir "$folder"

# api METHOD PATH [curl's options]: the answer on stdout; what is refused goes to stderr and ends the script. The token comes
# from a file descriptor: in an argument, every user of this machine could read it.
api() {
    local method=$1 path=$2
    shift 2
    curl -sS --fail-with-body -X "$method" "$url$path" -K <(printf 'header = "Authorization: Bearer %s"\n' "$token") "$@" || {
        echo "$method $path was refused" >&2
        return 1
    }
}

# job NAME PRESET [jq filter]: the body of a submission
job() {
    jq -n --arg source "file://$clip" --arg dest "file://$folder/$1" --arg preset "$2" \
        "{source: \$source, dest: \$dest, preset: \$preset, labels: {walk: \"$$\"}} | ${3:-.}"
}

# final ID: waits for the job's end, a change of state at a time
final() {
    local seq=0 answer
    while answer=$(api GET "/v1/jobs/$1?wait=20&after=$seq"); do
        jq -r '"  \(.state) \(.progress * 100 | floor) %"' <<<"$answer" >&2
        case $(jq -r .state <<<"$answer") in FINISHED | ERROR | CANCELLED | ABANDONED) break ;; esac
        seq=$(jq .event_seq <<<"$answer")
    done
    jq -r .state <<<"$answer"
}

echo "== what would be run"
api POST /v1/explain -d "$(job first.mp4 web-480p)" | jq -r '.commands[] | "\(.stage): \(.argv | join(" "))"'

echo "== submit, twice under one key: one job"
key="walk-$$"
first=$(api POST /v1/jobs -H "Idempotency-Key: $key" -d "$(job first.mp4 web-480p)" | jq -r .id)
test "$first" = "$(api POST /v1/jobs -H "Idempotency-Key: $key" -d "$(job first.mp4 web-480p)" | jq -r .id)"

echo "== wait"
test "$(final "$first")" = FINISHED
api GET "/v1/jobs/$first" | jq '.outputs[] | {uri, bytes, duration: .probe.duration_seconds}'

echo "== its log: commands and how they ended"
api GET "/v1/jobs/$first/log" | jq -r '.attempts[].stages[] | .stage as $stage | .commands[] | "\($stage): \(.argv[0]) -> \(.code)"'

echo "== a preset of one's own, as YAML; changing it needs the version that was read"
preset="walk-$$"
etag() { tr -d '\r' <"$folder/headers" | sed -n 's/^[Ee][Tt]ag: //p'; }
api PUT "/v1/presets/$preset" -H "Content-Type: application/yaml" -H "If-None-Match: *" -D "$folder/headers" --data-binary @- >/dev/null <<YAML
kind: preset
name: $preset
description: Small, for previews.
pipeline: web-mp4
params: {width: 320, height: 180, video_bitrate: 300k}
YAML
api PUT "/v1/presets/$preset" -H "Content-Type: application/yaml" -H "If-Match: $(etag)" --data-binary @- >/dev/null <<YAML
kind: preset
name: $preset
description: Smaller, for previews.
pipeline: web-mp4
params: {width: 160, height: 90, video_bitrate: 150k}
YAML
api GET "/v1/presets/$preset" -H "Accept: application/yaml"
small=$(api POST /v1/jobs -d "$(job small.mp4 "$preset")" | jq -r .id)
test "$(final "$small")" = FINISHED

echo "== cancel, and retry: the same recipe under the same id"
again=$(api POST /v1/jobs -d "$(job again.mp4 "$preset" '. + {priority: "low"}')" | jq -r .id)
if api POST "/v1/jobs/$again/cancel" >/dev/null && test "$(final "$again")" = CANCELLED; then
    api POST "/v1/jobs/$again/retry" | jq '{id, state}'
fi # else it was FINISHED first: nothing to cancel
test "$(final "$again")" = FINISHED

echo "== all of them, by label"
api GET "/v1/jobs?label=walk=$$" | jq -r '.jobs[] | "\(.id) \(.state) \(.dest)"'
api DELETE "/v1/presets/$preset"
echo "The outputs are in $folder"
