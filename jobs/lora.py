"""LoRA against full fine-tuning: a small causal model adapts to three parties' texts.

python jobs/lora.py [folder]

A model of bytes, a GPT-2 with random weights, is first trained in full on news (half of
the Lee corpus, which gensim ships). Then three parties adapt it to texts that it has
not seen: by LoRA, and by training all of it for as many rounds. Both ways end with
about the same loss; LoRA sends less than 5 % of the bytes, and leaves `adapter/`, which
`PeftModel.from_pretrained` reads. Needs: pip install 'fedray[lora,doc2vec]'
"""

import sys
from pathlib import Path

import numpy as np

LENGTH = 64  # bytes of a sample
TEXTS = {  # of gensim's test data: file, and which of its lines
    "news": ("lee_background.cor", slice(0, 150)),
    "reviews": ("pang_lee_polarity.cor", slice(0, None)),
    "novel": ("crime-and-punishment.txt", slice(0, None)),
    "other-news": ("lee_background.cor", slice(150, 300)),
}
PARTIES = ("reviews", "novel", "other-news")
N_SAMPLES = 256  # of a party's text; a quarter of them are tests


def base():
    """The causal model, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=128, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def lora():
    """The same with LoRA: everything is frozen but what is added to its layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["c_attn", "c_fc", "c_proj"],
        fan_in_fan_out=True, task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(base(), config)


class Texts:
    """Samples of a text's bytes (N, LENGTH); the model shifts the labels itself."""

    def __init__(self, name: str):
        self.name = name

    def get_data(self):
        """Samples to train on and samples to test with, each with labels."""
        from gensim.test.utils import datapath

        file, lines = TEXTS[self.name]
        with open(datapath(file), encoding="utf-8", errors="replace") as text:
            content = "".join(text.readlines()[lines]).encode()
        tokens = np.frombuffer(content, np.uint8).astype(np.int64)
        tokens = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
        tokens = np.random.default_rng(0).permutation(tokens)
        if self.name != "news":
            tokens = tokens[:N_SAMPLES]
        tests, trains = np.split(tokens, [len(tokens) // 4])
        return (trains, trains), (tests, tests)


def settings(architecture: str, parties: tuple[str, ...], **more) -> dict:
    """A config in which these texts are parties."""
    return {
        "architecture": f"{__file__}:{architecture}",
        "data_handler": f"{__file__}:Texts",
        "parties": [{"name": name, "data": name} for name in parties],
        "loss": "model", "optimizer": "AdamW", "batch_size": 16, **more,
    }  # fmt: skip


def main(folder: Path, rounds: int = 5) -> dict[str, tuple[int, float]]:
    """Train and adapt; bytes of a round and the last loss, by way of adapting."""
    import fedray

    start = fedray.run(
        settings("base", ("news",), rounds=1, epochs=4, learning_rate=2e-3),
        run_dir=folder / "base",
    )
    print(f"base: loss {start.loss:.3f} on news")
    found = {}
    for name, architecture, rate in (("full", "base", 3e-4), ("lora", "lora", 1e-2)):
        config = settings(
            architecture, PARTIES, rounds=rounds, epochs=2, learning_rate=rate,
            model_file=str(folder / "base"),
        )  # fmt: skip
        result = fedray.run(config, run_dir=folder / name)
        first, *others = (report.bytes_moved for report in result.history)
        found[name] = others[-1], result.loss
        print(f"{name}: loss {result.loss:.3f}, {others[-1]:,} bytes a round, "
              f"{first:,} in the first")  # fmt: skip
    bytes_share = found["lora"][0] / found["full"][0]
    loss_share = found["lora"][1] / found["full"][1]
    print(f"LoRA sends {bytes_share:.1%} of the bytes; its loss is "
          f"{loss_share:.3f} times that of full fine-tuning")  # fmt: skip
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "lora-runs").absolute())
