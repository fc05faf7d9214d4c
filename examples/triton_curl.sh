#!/bin/bash
# Labels of an image by a Triton server, with curl alone.
#
#   examples/triton_curl.sh rest_lite_classify photo.jpg [http://127.0.0.1:8000]
#
# The body is a JSON header, then the tensor: of a string its length in four bytes, little-endian, and
# its bytes. The answer is JSON, because the header asks for two outputs and not for binary ones.
set -euo pipefail

model=$1 image=$2 url=${3:-http://127.0.0.1:8000}
size=$(stat -c %s "$image")
length=$(printf '\\x%02x' $((size & 255)) $((size >> 8 & 255)) $((size >> 16 & 255)) $((size >> 24)))
header='{"inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": [1, 1],
  "parameters": {"binary_data_size": '$((size + 4))'}}],
  "outputs": [{"name": "label"}, {"name": "probability"}]}'

{ printf '%s' "$header"; printf '%b' "$length"; cat "$image"; } |
  curl --silent --show-error --fail-with-body --max-time 30 --data-binary @- \
    --header 'Content-Type: application/octet-stream' \
    --header "Inference-Header-Content-Length: ${#header}" \
    "$url/v2/models/$model/infer"
echo
