"""The name of a head is enough in a config; config files of Detectron2's version 1."""

import pytest

from instseg_d2.config import load_config
from instseg_d2.errors import ConfigError
from instseg_d2.modeling.build import build
from tests.tiny import MASK_RCNN, TINY, tiny_config, tiny_model


@pytest.mark.parametrize("head", ["AssembleMaskHead", "BlendMaskHead", "EmbedMaskHead", "MaskEmbeddingHead"])
def test_the_name_of_a_mask_head_is_enough(head):
    cfg = load_config(
        MASK_RCNN, [*TINY["MaskRCNN"], "MODEL.ROI_MASK_HEAD.NAME", head, "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT"]
    )
    assert type(build(cfg).roi_heads.mask_head).__name__ == head


def test_other_mask_heads_keep_their_pooler():
    head = load_config(MASK_RCNN).MODEL.ROI_MASK_HEAD
    assert (head.NAME, head.POOLER_TYPE, head.POOLER_RESOLUTION) == ("MaskRCNNConvUpsampleHead", "ROIAlignV2", 14)


@pytest.mark.parametrize(
    ("head", "pooler"), [("BlendMaskHead", ["POOLER_TYPE", ""]), ("MaskEmbeddingHead", ["POOLER_RESOLUTION", 28])]
)
def test_detectors_without_a_pyramid_are_named(head, pooler):
    opts = [
        "MODEL.ROI_MASK_HEAD.NAME", head,
        f"MODEL.ROI_MASK_HEAD.{pooler[0]}", pooler[1],
        "MODEL.ROI_HEADS.NAME", "Res5ROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES", ["p4"],
        "MODEL.ROI_BOX_HEAD.NAME", "",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=f"Res5ROIHeads.*{head} works in StandardROIHeads"):
        build(tiny_config("MaskRCNN", *opts))


@pytest.mark.parametrize("heads", ["ISTRHeads", "SparseInstHeads"])
def test_heads_that_find_masks_by_themselves_refuse_given_boxes(heads):
    model = tiny_model("MaskRCNN", "MODEL.ROI_HEADS.NAME", heads, "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT")
    with pytest.raises(ValueError, match=f"{heads} cannot predict masks in given boxes; set TEST.AUG.ENABLED to False"):
        model.roi_heads.forward_with_given_boxes({}, [])


@pytest.mark.parametrize("version", ["", "VERSION: 1\n"])
def test_files_of_detectron2s_first_version(tmp_path, version):
    (tmp_path / "base.yaml").write_text(f"{version}MODEL:\n  WEIGHT: some.pkl\n  ROI_HEADS:\n    NMS: 0.6\n")
    (tmp_path / "x.yaml").write_text("_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 7\n")
    for file in ("base.yaml", "x.yaml"):
        cfg = load_config(str(tmp_path / file))
        assert (cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST) == ("some.pkl", 0.6)
        assert cfg.VERSION == 2


def test_a_word_of_the_first_version_does_not_make_a_file_one(tmp_path):
    """Detectron2 would guess the version from single keys."""
    (tmp_path / "x.yaml").write_text("MODEL:\n  WEIGHTS: some.pkl\nTEST:\n  AUG:\n    ENABLED: True\n")
    assert load_config(str(tmp_path / "x.yaml")).MODEL.WEIGHTS == "some.pkl"
