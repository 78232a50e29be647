#!/bin/sh
# Measures embed on a machine with a GPU, from a bare checkout, with no network beyond pip:
#     sh benchmarks/embed_gpu.sh
# Weights (seeded, random) and pictures are made on the spot. Results go to
# benchmarks/results/embed-gpu-MODEL.json: end-to-end rate beside open_clip's bare towers at the
# same batch and precision (aim for ViT-L-14: 0.9 or more), GPU memory (aim: below 8 GB), and what
# the decoders do alone.
set -e
cd "$(dirname "$0")/.."
python3 -m venv --system-site-packages bench-work/venv   # takes a torch that is there already
bench-work/venv/bin/pip install -q --editable . nvidia-ml-py pytest hypothesis
run=bench-work/venv/bin/python
$run -m pytest -q tests/backends/clip/test_cuda.py || echo "CUDA tests failed: see above"
$run -m benchmarks.embed --model ViT-L-14 --images 20000 --small 4000 --shard 2000 "$@"
$run -m benchmarks.embed --model ViT-B-32 --images 40000 --small 8000 --shard 4000 "$@"
