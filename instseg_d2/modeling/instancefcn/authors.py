"""Parameter names of torchvision's VGG-16, trained on ImageNet."""

from ...checkpoint.authors.renaming import StateDict, renamed

# Its last convolution, which no smaller VGG has.
VGG16_LAST_CONV = "features.28."

_RULES = (
    (r"^features\.", "backbone.features."),
    # fc6 and fc7 initialise the classifier of segments, as in Fast R-CNN.
    (r"^classifier\.0\.", "roi_heads.box_head.fc1."),
    (r"^classifier\.3\.", "roi_heads.box_head.fc2."),
)


def convert_vgg16(state_dict: StateDict) -> StateDict:
    """Convert the state dict of torchvision's ``vgg16()`` to our names, without the ImageNet classifier."""
    return {renamed(key, _RULES): value for key, value in state_dict.items() if not key.startswith("classifier.6.")}
