"""Whom to cite for a method."""

from __future__ import annotations

_REVISITING = (
    "Da-Wei Zhou, Zi-Wen Cai, Han-Jia Ye, De-Chuan Zhan, Ziwei Liu. *Revisiting Class-Incremental Learning with "
    "Pre-Trained Models: Generalizability and Adaptivity are All You Need.* IJCV 2024. "
    "[arXiv 2303.07338](https://arxiv.org/abs/2303.07338)"
)

PAPERS = {
    "aper": _REVISITING,
    "simple_cil": _REVISITING,
    "ranpac": (
        "Mark D. McDonnell, Dong Gong, Amin Parvaneh, Ehsan Abbasnejad, Anton van den Hengel. *RanPAC: Random "
        "Projections and Pre-trained Models for Continual Learning.* NeurIPS 2023. "
        "[arXiv 2307.02251](https://arxiv.org/abs/2307.02251)"
    ),
    "safe": (
        "Linglan Zhao, Xuerui Zhang, Ke Yan, Shouhong Ding, Weiran Huang. *SAFE: Slow and Fast Parameter-Efficient "
        "Tuning for Continual Learning with Pre-Trained Models.* NeurIPS 2024. "
        "[arXiv 2411.02175](https://arxiv.org/abs/2411.02175)"
    ),
    "hide_pet": (
        "Liyuan Wang, Jingyi Xie, Xingxing Zhang, Hang Su, Jun Zhu. *HiDe-PET: Continual Learning via Hierarchical "
        "Decomposition of Parameter-Efficient Tuning.* IEEE TPAMI 2025. "
        "[arXiv 2407.05229](https://arxiv.org/abs/2407.05229)"
    ),
    "ntk_cl": (
        "Jingren Liu et al. *Parameter-Efficient Fine-Tuning for Continual Learning: A Neural Tangent Kernel "
        "Perspective.* "
        "[arXiv 2407.17120](https://arxiv.org/abs/2407.17120)"
    ),
}
"""By method, as Markdown. A method of somebody else's has no entry."""
