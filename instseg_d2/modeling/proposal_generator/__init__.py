"""Proposal generators and box detectors."""

from ...config.fcos import add_fcos_config, check_fcos_config
from ...methods import AutoRecipe, ClassRows, Method, Publication, register_method
from .exportable import ExportableFCOS
from .fcos import FCOS
from .fcos_detector import FCOSDetector
from .no_proposals import NoProposals
from .recipe import recipe_rules

__all__ = ["FCOS", "FCOSDetector", "NoProposals"]

register_method(
    Method(
        "FCOSDetector",
        aliases=("OneStageDetector",),
        add_config=add_fcos_config,
        check_config=check_fcos_config,
        class_count_keys={"MODEL.FCOS.NUM_CLASSES": 0},
        class_layers={"class_logits": ClassRows()},
        exportable=ExportableFCOS,
        rerun_parts=("backbone", "heads"),
        auto=AutoRecipe(recipe_rules),
        publication=Publication(
            "FCOS", "ICCV 2019, arXiv 1904.01355", "https://github.com/aim-uofa/AdelaiDet (model zoo)"
        ),
    )
)
