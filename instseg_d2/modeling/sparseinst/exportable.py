"""SparseInst as a function of tensors."""

from detectron2.structures import ImageList

from ..exportable import Exportable
from ..postprocessing import rescore
from .inference import class_scores


class ExportableSparseInst(Exportable):
    """A `SparseInst` as one graph."""

    def slots(self, images: ImageList):
        outputs = self.model.outputs(images)
        classes, masks = class_scores(outputs), outputs["mask_logits"].float().sigmoid()
        return classes, rescore(classes.amax(-1), masks, self.model.mask_threshold), masks
