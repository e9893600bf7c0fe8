"""
Runs exported models with NumPy, OpenCV and a runtime. Needs neither PyTorch nor Detectron2.

    from instseg_d2.runtime import Model, read_image

    model = Model("model.onnx")
    found = model(read_image("photo.jpg"))
    found.boxes, found.scores, [model.class_names[i] for i in found.labels], found.masks()
"""

from .masks import mask_patch
from .model import Detections, Model, read_image
from .sessions import SESSIONS, open_session

__all__ = ["SESSIONS", "Detections", "Model", "mask_patch", "open_session", "read_image"]
