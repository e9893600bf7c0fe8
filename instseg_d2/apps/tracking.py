"""Follows objects from frame to frame. D detections."""

import numpy as np
import torch
from detectron2.structures import Instances

from ..errors import ConfigError

__all__ = ["Tracker"]

LOST = 30  # frames after which an object that is not found any more is given up


class Tracker:
    """
    ByteTrack: detections are matched with the objects' predicted boxes, those that reach the score threshold first. The
    weaker ones then only keep an object alive while it is hidden; they are no objects themselves.

    Args:
        score_threshold: of the objects.

    Attributes:
        detection_threshold: detections that score lower are not needed.

    Raises:
        ConfigError: the package is missing.
    """

    def __init__(self, score_threshold: float):
        try:
            from supervision import Detections
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ConfigError(
                f"--track needs the package trackers ({error}): pip install 'instseg_d2[track]', Python 3.10 or newer"
            ) from error
        self.score_threshold, self.detection_threshold = score_threshold, score_threshold / 2
        self._detections = Detections
        self._tracker = ByteTrackTracker(
            lost_track_buffer=LOST,
            track_activation_threshold=score_threshold,
            high_conf_det_threshold=score_threshold,
        )

    def update(self, instances: Instances) -> Instances:
        """
        The objects of the next frame, with a field ``track_ids`` (D,) int64: from 1, the same for an object in all
        frames; 0 in the frame where it is first seen, since one frame alone may be a mistake.
        """
        scores = instances.scores.numpy()
        found = self._detections(
            xyxy=instances.pred_boxes.tensor.numpy(), confidence=scores, data={"index": np.arange(len(instances))}
        )
        found = self._tracker.update(found)
        ids = torch.zeros(len(instances), dtype=torch.int64)
        if len(found):
            ids[found.data["index"]] = torch.from_numpy(found.tracker_id + 1)
        instances.track_ids = ids
        return instances[instances.scores >= self.score_threshold]
