"""Config values of BlendMask's bottom modules that do not fit together."""

import pytest

from instseg_d2.errors import ConfigError
from tests.tiny import tiny_model


def test_the_common_stride_is_that_of_the_semantic_logits():
    with pytest.raises(ConfigError, match=r"BASIS_MODULE\.COMMON_STRIDE is 4; the semantic loss on p3 needs its .* 8"):
        tiny_model("BlendMask", "MODEL.BASIS_MODULE.COMMON_STRIDE", 4)
    tiny_model("BlendMask", "MODEL.BASIS_MODULE.COMMON_STRIDE", 4, "MODEL.BASIS_MODULE.LOSS_ON", False)
