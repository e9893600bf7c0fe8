"""The five methods, small, as the quick recipes have them, with random weights that find many objects."""

from pathlib import Path

import torch

from instseg_d2.config import load_config, set_num_classes
from instseg_d2.modeling.build import build

METHODS = {
    "blendmask": ["MODEL.FCOS.INFERENCE_TH_TEST", 0.0],
    "embedmask": ["MODEL.EMBED_MASK.INFERENCE_TH", 0.0],
    "instancefcn": ["MODEL.INSTANCE_FCN.SCALES_TEST", (64, 128)],  # of eight
    "istr": ["MODEL.ISTR.NUM_HEADS", 1],  # six untrained ones push all boxes out of the image
    "sparseinst": ["MODEL.SPARSE_INST.CLS_THRESHOLD", 0.0],
}


def small_config(method: str, *opts, num_classes: int = 3):
    """The quick recipe on the CPU, with overrides."""
    file = Path(__file__).parents[1] / f"configs/quick/{method}_shapes.yaml"
    cfg = load_config(str(file), ["MODEL.DEVICE", "cpu", *METHODS[method], *opts])
    set_num_classes(cfg, num_classes)
    return cfg


def small_model(method: str, *opts, num_classes: int = 3, seed: int = 0):
    """The model with random weights; FCOS's boxes are some cells large."""
    torch.manual_seed(seed)
    model = build(small_config(method, *opts, num_classes=num_classes))
    for name, module in model.named_modules():
        if name.endswith("box_distances"):
            torch.nn.init.constant_(module.bias, 2.0)
    return model
