#!/usr/bin/env bash
# The main job on real input: the public commands on a real DINOv2 ViT-S/14 and 2,000 published images.
# A second run finds everything done. Argument: the folder of the environment's executables.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
export FEATCACHE_ROOT=.demo/caches

featcache() {
    echo "+ featcache $*"
    "$bin/featcache" "$@"
}

"$bin/python" demo/prepare.py --dir .demo
featcache extract --model dinov2-vit-s-14 --weights .demo/dinov2_vits14.safetensors --dataset imagefolder:.demo/textile
featcache probe --dataset textile --head linear --head attentive --layers all --tokens cls+ap --protocol quick --out .demo/results
featcache probe --dataset textile --head logreg --input standard --protocol quick --out .demo/results
featcache results .demo/results --view gains
