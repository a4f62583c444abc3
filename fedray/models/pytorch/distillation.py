"""Distills an ensemble into one PyTorch model."""

import numpy as np
import torch

from fedray.config import FederationConfig
from fedray.models import torch_state
from fedray.models.base import batch_sizes
from fedray.models.pytorch.model import TorchModel

# Adam's; it falls along a cosine to 0, as in the source
LEARNING_RATE = 1e-3


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
    samples = student.to_samples(x)
    targets = torch.as_tensor(probabilities, dtype=torch.float32).to(student.device)
    torch_state.seed_all(config.seed)  # dropout
    order = np.random.default_rng(config.seed)
    optimizer = torch.optim.Adam(student.trained, lr=LEARNING_RATE)
    student.module.train()
    joins_single = student.takes_batch_statistics
    sizes = batch_sizes(len(x), config.batch_size, joins_single=joins_single)
    n_steps = config.distill_epochs * len(sizes)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    loss = torch.zeros(())
    for _ in range(config.distill_epochs):
        loss = torch.zeros(())
        rows = torch.from_numpy(order.permutation(len(x))).to(student.device)
        for batch in rows.split(sizes):
            optimizer.zero_grad(set_to_none=True)
            log_probabilities = student.output(samples[batch]).log_softmax(1)
            batch_loss = torch.nn.functional.kl_div(
                log_probabilities, targets[batch], reduction="batchmean"
            )
            batch_loss.backward()
            optimizer.step()
            schedule.step()
            loss = loss + batch_loss.detach().cpu() * len(batch)
    return float(loss) / len(x)
