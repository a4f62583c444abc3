"""Distillation of an ensemble into one PyTorch model, on unlabeled samples."""

import numpy as np
import torch

from fedray.config import FederationConfig
from fedray.models.pytorch.model import TorchModel

LEARNING_RATE = 1e-3  # Adam's; it falls along a cosine to 0, as in the source


def distill(
    student: TorchModel,
    x: np.ndarray,
    probabilities: np.ndarray,
    config: FederationConfig,
) -> float:
    """Train `student` in place by KL(ensemble || student); the last pass's mean loss.

    Parameters
    ----------
    x : (N, ...) samples as the student takes them.
    probabilities : (N, C) the ensemble's.

    Source: ensemble distillation, Lin et al. 2020, arXiv:2006.07242, section 3. It
    averages logits; members of unlike frameworks share probabilities only.
    """
    samples, _ = student.ready(x, np.zeros(len(x), np.int64))
    targets = torch.as_tensor(probabilities, dtype=torch.float32).to(student.device)
    torch.manual_seed(config.seed)  # dropout
    order = np.random.default_rng(config.seed)
    optimizer = torch.optim.Adam(student.trained, lr=LEARNING_RATE)
    n_steps = config.distill_epochs * -(-len(x) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    student.module.train()
    loss = torch.zeros(())
    for _ in range(config.distill_epochs):
        loss = torch.zeros(())
        rows = torch.from_numpy(order.permutation(len(x))).to(student.device)
        for batch in rows.split(config.batch_size):
            optimizer.zero_grad(set_to_none=True)
            log_probabilities = student.module(samples[batch]).log_softmax(1)
            step = torch.nn.functional.kl_div(
                log_probabilities, targets[batch], reduction="batchmean"
            )
            step.backward()
            optimizer.step()
            schedule.step()
            loss = loss + step.detach().cpu() * len(batch)
    return float(loss) / len(x)
