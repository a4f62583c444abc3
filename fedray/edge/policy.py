"""What the owner of an edge allows: edge.yaml, checked before anything is done.

The service chooses the settings of a run; a task beyond what stands here is given back
with the reason, and nothing of it is fetched or trained.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedray.config import yaml_text
from fedray.edge.errors import PolicyError
from fedray.edges.plan import PlanSummary
from fedray.errors import shorten

POLICY = "edge.yaml"  # in the state folder, unless --policy names another
MAX_BYTES = 64 << 10
Positive = Annotated[int, Field(ge=1, le=1 << 62)]


class PrivacyPolicy(BaseModel):
    """Privacy without which this edge does not train.

    noise_at_least : noise multiplier of `dp_sgd`, which this edge adds by itself.
        Noise that others say they add does not count.
    secure_aggregation : only with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    noise_at_least: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    secure_aggregation: bool = False


class EdgePolicy(BaseModel):
    """Limits of an edge's owner; None: no limit.

    models : kinds that may be trained: of known layers of PyTorch or Keras, or
        `class`, the owner's own that is named on the command line.
    max_epochs : passes over the data in a round.
    max_samples : that pass through training in a round, those seen twice counted twice.
    max_model_bytes : of the weights as they travel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    models: list[Literal["pytorch", "keras", "class"]] | None = None
    max_epochs: Positive | None = None
    max_samples: Positive | None = None
    max_model_bytes: Positive | None = None
    privacy: PrivacyPolicy = PrivacyPolicy()

    def check_plan(self, plan: PlanSummary) -> None:
        """Compare with what a run asks for, before its weights are fetched.

        Raises
        ------
        PolicyError
            Naming what is not allowed.
        """
        if self.models is not None and plan.model_type not in self.models:
            self._refuse("models", str(self.models), f"a model of {plan.model_type}")
        settings = plan.settings
        self.check_bytes(plan.n_bytes)
        n_passes = count_passes(settings)
        if self.max_epochs is not None and n_passes > self.max_epochs:
            self._refuse("max_epochs", str(self.max_epochs), f"{n_passes:g} epochs")
        if self.privacy.secure_aggregation and not settings.get("secure_aggregation"):
            got = "a run without secure_aggregation"
            self._refuse("privacy.secure_aggregation", "true", got)
        if self.privacy.noise_at_least is not None and not settings.get("dp_sgd"):
            needed = f"{self.privacy.noise_at_least:g}"
            got = "a run without dp_sgd: this edge would add no noise itself"
            self._refuse("privacy.noise_at_least", needed, got)

    def check_bytes(self, n_bytes: int) -> None:
        """Compare weights of so many bytes with what is allowed.

        Raises
        ------
        PolicyError
        """
        limit = self.max_model_bytes
        if limit is not None and n_bytes > limit:
            self._refuse("max_model_bytes", f"{limit:,}", f"{n_bytes:,} bytes")

    def check_training(
        self, settings: dict[str, Any], n_samples: int, noise: float | None
    ) -> None:
        """Compare with what a round would do, once the data is read.

        n_samples : of this edge, for training.
        noise : multiplier of the noise that its training would add; None: none.

        Raises
        ------
        PolicyError
            Naming what is not allowed.
        """
        steps, batch = settings.get("local_steps"), settings.get("batch_size") or 64
        n_passes = count_passes(settings)
        n_seen = int(steps * batch if steps else n_passes * n_samples)
        if self.max_samples is not None and n_seen > self.max_samples:
            got = f"{n_seen:,} samples in a round"
            self._refuse("max_samples", f"{self.max_samples:,}", got)
        least = self.privacy.noise_at_least
        if least is not None and (noise is None or noise < least):
            got = "no noise" if noise is None else f"a noise multiplier of {noise:.4g}"
            self._refuse("privacy.noise_at_least", f"{least:g}", got)
        if (
            steps
            and self.max_epochs is not None
            and n_seen > (self.max_epochs * n_samples)
        ):
            got = f"{n_seen / max(1, n_samples):.4g} epochs"
            self._refuse("max_epochs", str(self.max_epochs), got)

    def _refuse(self, key: str, allowed: str, got: str) -> None:
        raise PolicyError(f"the owner of this edge allows {key} {allowed}, not {got}")


def count_passes(settings: dict[str, Any]) -> float:
    """Passes over the data in a round, those of the party's own layers included."""
    epochs = 0 if settings.get("local_steps") else settings.get("epochs", 1)
    n_passes = epochs + settings.get("personal_epochs", 0)
    is_ditto = settings.get("ditto_lambda") is not None
    n_passes *= 2 if is_ditto else 1
    return float(n_passes + settings.get("finetune_epochs", 0))


def read_policy(path: Path) -> EdgePolicy:
    """Read a policy file.

    Raises
    ------
    PolicyError
        With every mistake in it: an edge never runs by half a policy.
    """
    shown = shorten(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PolicyError(f"policy {shown} is larger than {MAX_BYTES} bytes")
        values, mistakes = yaml_text.load(data.decode("utf-8-sig"))
    except OSError as error:
        raise PolicyError(f"cannot read policy {shown}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]
        raise PolicyError(f"policy {shown} is not YAML: {why}") from None
    if mistakes:
        raise PolicyError(f"policy {shown}, {'; '.join(mistakes)}")
    try:
        return EdgePolicy.model_validate(_plain({} if values is None else values))
    except ValidationError as error:
        problems = "; ".join(map(_describe, error.errors(include_url=False)))
        keys = ", ".join(EdgePolicy.model_fields)
        raise PolicyError(f"policy {shown}: {problems}. Its keys: {keys}") from None


def _plain(value: Any) -> Any:
    """Values as YAML reads them; 1e9 is a number, and a whole one where it is whole."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, yaml_text.PlainText):
        value = yaml_text.to_value(value)
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _describe(error: Any) -> str:
    where = ".".join(map(str, error["loc"])) or "the file"
    return f"{where}: {error['msg']}, got {str(error['input'])[:80]!r}"
