#!/usr/bin/env bash
# The whole way on drawn fundi: prepare, train, evaluate, predict. Everything lands in
# demo/; what is there already is used again.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

echo "== data"
python scripts/prepare_data.py --dataset=synthetic_fundus --data_dir=demo/data \
  --image_size=96 --num_images=240,60,100 --glaucoma_fraction=0.4 \
  --example=demo/photographs
echo "== training"
python scripts/train.py --config=configs/synthetic.py --workdir=demo/run --resume \
  --config.steps_per_dispatch=10 --config.evaluation.point=peak
echo "== prediction"
python scripts/predict.py --workdir=demo/run --images=demo/photographs/images \
  --output=demo/predictions
echo "== prediction by the network in the package"
python scripts/predict.py --images=demo/photographs/images --output=demo/included
echo "== evaluation"
python scripts/evaluate.py --workdir=demo/run --split=test
echo "demo/run/checkpoints"
echo "demo/predictions/overlays"
echo "demo/included/overlays"
