#!/usr/bin/env bash
# Submit an image with curl, wait for the job, and download the result. Needs jq.
#   examples/curl.sh photo.jpg "a watercolor painting"
set -euo pipefail

service=${IMG2IMG_URL:-http://127.0.0.1:8000}
image=${1:-$(dirname "$0")/input.png}
prompt=${2:-a watercolor painting of a red house by a lake}

curl() { command curl --silent --show-error --fail-with-body --header "X-API-Key: ${IMG2IMG_API_KEY:-none}" "$@"; }

job=$(curl "$service/img2img" -F image=@"$image" -F prompt="$prompt" -F strength=0.6 | jq --raw-output .id)
status=queued
while [[ $status == queued || $status == running ]]; do
  # Responds when the job has ended, at the latest after 30 seconds.
  status=$(curl "$service/jobs/$job?wait=30" | jq --raw-output .status)
done
curl "$service/jobs/$job/result" --output result.png
echo result.png
