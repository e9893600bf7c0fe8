"""The page of ``instseg ui``: detections on photos and videos; a data set, its faults and a model's mistakes."""
