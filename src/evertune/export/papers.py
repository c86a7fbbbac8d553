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
    "ease": (
        "Da-Wei Zhou, Hai-Long Sun, Han-Jia Ye, De-Chuan Zhan. *Expandable Subspace Ensemble for Pre-Trained "
        "Model-Based Class-Incremental Learning.* CVPR 2024. [arXiv 2403.12030](https://arxiv.org/abs/2403.12030)"
    ),
    "fecam": (
        "Dipam Goswami, Yuyang Liu, Bartłomiej Twardowski, Joost van de Weijer. *FeCAM: Exploiting the Heterogeneity "
        "of Class Distributions in Exemplar-Free Continual Learning.* NeurIPS 2023. "
        "[arXiv 2309.14062](https://arxiv.org/abs/2309.14062)"
    ),
    "l2p": (
        "Zifeng Wang, Zizhao Zhang, Chen-Yu Lee, Han Zhang, Ruoxi Sun, Xiaoqi Ren, Guolong Su, Vincent Perot, Jennifer "
        "Dy, Tomas Pfister. *Learning to Prompt for Continual Learning.* CVPR 2022. "
        "[arXiv 2112.08654](https://arxiv.org/abs/2112.08654)"
    ),
    "dualprompt": (
        "Zifeng Wang, Zizhao Zhang, Sayna Ebrahimi, Ruoxi Sun, Han Zhang, Chen-Yu Lee, Xiaoqi Ren, Guolong Su, Vincent "
        "Perot, Jennifer Dy, Tomas Pfister. *DualPrompt: Complementary Prompting for Rehearsal-free Continual "
        "Learning.* ECCV 2022. [arXiv 2204.04799](https://arxiv.org/abs/2204.04799)"
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
