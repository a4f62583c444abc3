"""PyTorch's losses as configs name them: classes, functions, with their modules."""

TORCH_CLASSES = {  # classes of torch.nn that are functions here
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "MultiMarginLoss": "multi_margin_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "SoftMarginLoss": "soft_margin_loss",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "PoissonNLLLoss": "poisson_nll_loss",
    "CTCLoss": "ctc_loss",
    "GaussianNLLLoss": "gaussian_nll_loss",
    "KLDivLoss": "kl_div",
    "CosineEmbeddingLoss": "cosine_embedding_loss",
    "HingeEmbeddingLoss": "hinge_embedding_loss",
    "MarginRankingLoss": "margin_ranking_loss",
    "TripletMarginLoss": "triplet_margin_loss",
    "TripletMarginWithDistanceLoss": "triplet_margin_with_distance_loss",
    "MultiLabelMarginLoss": "multilabel_margin_loss",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin_loss",
}
TORCH_MODULES = ("torch.nn.functional", "torch.nn", "nn.functional", "nn", "F")


def function_name(name: str) -> str:
    """Name in torch.nn.functional of ``BCELoss``, ``nn.MSELoss`` or ``F.mse_loss``."""
    module, _, last = name.rpartition(".")
    if module and module not in (*TORCH_MODULES, "functional"):
        return name
    return TORCH_CLASSES.get(last, last)
