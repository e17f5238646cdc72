"""Step 4a, from scratch only: train the tokenizer, a byte-level BPE with Qwen2's pre-tokenizer and special tokens.

Reads  WORK/rows.jsonl.
Writes tokenizer.json, vocab.json, merges.txt and tokenizer_config.json into a folder.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from starter_recipe.model import Shape

# the pattern is Qwen2's; see its tokenizer.json
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
SEED = 3
TEXTS_PER_LANGUAGE = 70_000
LONGEST = 32768


def sample_texts(work: Path) -> list[str]:
    """Return about equally many texts of every language."""
    languages: dict[str, list[str]] = defaultdict(list)
    for line in (work / "rows.jsonl").read_text("utf-8").splitlines():
        text, _, _, language = json.loads(line)
        languages[language].append(text)
    generator = np.random.default_rng(SEED)
    texts = []
    for _, members in sorted(languages.items()):
        texts += [members[index] for index in generator.permutation(len(members))[:TEXTS_PER_LANGUAGE]]
    return texts


def train(texts: list[str], vocabulary: int) -> Tokenizer:
    """Train the merges; the special tokens get the last numbers, as in Qwen2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel(  # type: ignore[call-arg]  # the stub knows no parameters
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocabulary - len(SPECIAL)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=3)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    assert tokenizer.get_vocab_size() == vocabulary, tokenizer.get_vocab_size()
    return tokenizer


def config(tokenizer: Tokenizer) -> dict[str, object]:
    """Return tokenizer_config.json."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {str(tokenizer.token_to_id(token)): {"content": token, **flags, "special": True} for token in SPECIAL}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": LONGEST,
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the four files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config(tokenizer), indent=1), encoding="utf-8")


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    write(train(sample_texts(options.work), Shape().vocabulary), options.output)


if __name__ == "__main__":
    main()
