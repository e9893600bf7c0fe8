# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From own data to an exported model
#
# All steps in Python: check the data, look at it, train, evaluate, predict, explain, export, and run the exported file.
# This file, `projects/docs/own_data.py`, is a notebook: open it with Jupyter and jupytext, or run it as it is.
#
# ## Your data
#
# A COCO file and a folder of images for training, and a file for validation. Without any, 240 pictures of shapes are
# drawn here, so that the notebook runs at once.

# %%
import os
from pathlib import Path

from instseg_d2.data import make_shapes

DATA = os.environ.get("INSTSEG_NOTEBOOK_DATA", "mine")  # your folder
IMAGES, TRAIN, VAL = f"{DATA}/images", f"{DATA}/train.json", f"{DATA}/val.json"
OVERRIDES = ["SOLVER.MAX_ITER", "600"]  # config keys and values of the training: a few minutes on two cores
OVERRIDES += os.environ.get("INSTSEG_NOTEBOOK_OVERRIDES", "").split()

if not Path(TRAIN).exists():
    make_shapes(DATA, "train", 200, 0)
    make_shapes(DATA, "val", 40, 1)

# %% [markdown]
# ## Check
#
# `run` is the program `instseg`: it returns the exit status, 0 if all is well, here 1 if there are faults. The table
# says what training does about each.

# %%
from instseg_d2.commands import run

run("check", [TRAIN, IMAGES, VAL, IMAGES])

# %% [markdown]
# ## Look
#
# Wrong labels are found by eye.

# %%
import matplotlib.pyplot as plt
from detectron2.data import DatasetCatalog, MetadataCatalog

from instseg_d2.data import read_image, register_coco
from instseg_d2.visualization import draw_annotations, draw_instances


def show(pictures):
    """Pictures (H, W, 3) side by side."""
    _, axes = plt.subplots(1, len(pictures), figsize=(4 * len(pictures), 4), squeeze=False)
    for axis, picture in zip(axes[0], pictures):
        axis.imshow(picture)
        axis.axis("off")
    plt.show()


register_coco("mine_val", VAL, IMAGES)
records, classes = DatasetCatalog.get("mine_val"), MetadataCatalog.get("mine_val").thing_classes
show([draw_annotations(read_image(record["file_name"], "RGB"), record, classes) for record in records[:3]])

# %% [markdown]
# ## Train
#
# A small network from scratch, on images of about 200 pixels; `INPUT.MIN_SIZE_TRAIN "(384, 448)"` takes larger ones. On
# a GPU, choose a recipe such as `BlendMask/R_50_1x`, which starts from pretrained weights. The same command with
# `--resume` continues an interrupted run.

# %%
data = ["--train-json", TRAIN, "--train-images", IMAGES, "--val-json", VAL, "--val-images", IMAGES]
recipe = ["--config", "quick/blendmask_shapes", "--num-gpus", "0"]
assert run("train", [*recipe, *data, "OUTPUT_DIR", "run", *OVERRIDES]) == 0

# %% [markdown]
# ## Evaluate
#
# AP of boxes and masks, also by class and size. `run/metrics.json` has the losses.

# %%
WEIGHTS = "run/model_final.pth"
assert run("evaluate", ["--weights", WEIGHTS, "--json", VAL, "--images", IMAGES, "--num-gpus", "0"]) == 0

# %% [markdown]
# ## Predict
#
# On an array, a file or a PIL image. After a few iterations the scores are low: lower the threshold to see more.

# %%
from instseg_d2.engine import Predictor

predictor = Predictor.from_checkpoint(WEIGHTS)
photos = [record["file_name"] for record in records[:3]]
show([draw_instances(read_image(p, "RGB"), predictor(p), classes, score_threshold=0.4) for p in photos])

# %% [markdown]
# ## Explain
#
# What the network sees in an image: for this method bases, and how each object mixes them.

# %%
run("explain", ["--weights", WEIGHTS, "--input", photos[0], "--output", "explained", "--score-threshold", "0.3"])
print(*sorted(str(path) for path in Path("explained").rglob("*.jpg")), sep="\n")

# %% [markdown]
# ## Export
#
# The file contains everything from raw pixels to masks, and is compared with PyTorch before it is kept.

# %%
assert run("export", ["--weights", WEIGHTS, "--format", "onnx", "--output", "model.onnx", "--images", IMAGES]) == 0

# %% [markdown]
# ## Run the file
#
# This cell needs NumPy, OpenCV and ONNX Runtime, but neither PyTorch nor Detectron2.

# %%
from instseg_d2.runtime import Model
from instseg_d2.runtime import read_image as read_bgr

model = Model("model.onnx")
found = model(read_bgr(photos[0]), score_threshold=0.3)
for i, (box, score, label) in enumerate(zip(found.boxes, found.scores, found.labels)):
    print(model.class_names[label], f"{score:.2f}", box.round(), found.mask(i).sum(), "pixels")
