#!/bin/sh
# Measures embed on a machine with a GPU, from a bare checkout:
#     sh benchmarks/embed_gpu.sh
# Weights (seeded, random) and pictures are made on the spot. Results go to
# benchmarks/results/embed-gpu-MODEL.json (OUT=FOLDER: there): end-to-end rate beside open_clip's
# bare towers at the same batch and precision (roofline_image_tower, aim for ViT-L-14: 0.9 or
# more), GPU memory (aim: below 8 GB), and what the decoders do alone. About three minutes a model,
# 6 GB in bench-work/ (weights and pictures), which may be deleted afterwards.
#
# An environment is made with pip. Where there is no network, name a Python that has laionkit's
# dependencies already: PYTHON=python3 sh benchmarks/embed_gpu.sh
# Of those, torch, torchvision, open_clip_torch with timm and ftfy, pyarrow, duckdb, pydantic, cyclopts,
# simplejpeg, opencv-python-headless, mmh3, fsspec and pytest with hypothesis are what this imports;
# nvidia-ml-py, where it is there, tells the GPU's use.
set -e
cd "$(dirname "$0")/.."
if [ -z "$PYTHON" ]; then
    python3 -m venv --system-site-packages bench-work/venv   # takes a torch that is there already
    bench-work/venv/bin/pip install -q --editable . nvidia-ml-py pytest hypothesis
    PYTHON=bench-work/venv/bin/python
fi
out=${OUT:-benchmarks/results}
"$PYTHON" -c 'import benchmarks.embed_sides, laionkit.stages.adopt, laionkit.stages.embed.worker'
"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch finds no CUDA GPU here"'
"$PYTHON" -m pytest -q tests/backends/clip/test_cuda.py || echo "CUDA tests failed: see above"
measure() {
    model=$1
    shift
    "$PYTHON" -m benchmarks.embed --model "$model" --out "$out/embed-gpu-$model.json" "$@"
}
measure ViT-L-14 --images 40000 --small 4000 --shard 2000 "$@"
measure ViT-B-32 --images 80000 --small 8000 --shard 4000 "$@"
