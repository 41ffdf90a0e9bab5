"""OLMo 2: norms of what attention and feed-forward add and not of what they read.

The queries of all heads have one norm together, and so have their keys.
"""

from sinkjax.models.families.family import OUTER_NORMS, QK_NORMS, Family, Gguf

FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    defaults={"vocab_size": 50_304, "rms_norm_eps": 1e-5},
    read=lambda attributes: {
        "qk_norm": True,
        "joint_qk_norm": True,
        "inner_norms": False,
        "outer_norms": True,
    },
    gguf=Gguf("olmo2", names={**QK_NORMS, **OUTER_NORMS}),
)
