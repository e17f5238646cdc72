"""Hyperparameters of a Qwen2.5-VL vision tower and of its image processor. Does not know files or pixels."""

from dataclasses import dataclass

CHANNELS, FRAMES, MERGE = 3, 2, 2
WINDOW, MIN_PIXELS, MAX_PIXELS = 112, 3136, 602112
IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - a token of the vocabulary
PROMPT = f"<|im_start|>user\n<|vision_start|>{IMAGE_TOKEN}<|vision_end|>Describe the image.<|im_end|>\n"
"""The prompt around an image in every task of jina-embeddings-v4 (from its processing code)."""


@dataclass(frozen=True, slots=True)
class TowerShape:
    """Hyperparameters of a Qwen2.5-VL vision tower; sizes of patches and windows in pixels.

    Every `full_every`-th block has full attention over the image, the others window attention.
    """

    blocks: int
    hidden: int
    heads: int
    feed_forward: int
    out: int
    full_every: int
    rms_eps: float
    patch: int = 14
    window: int = WINDOW

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Values of a patch: channels, two equal frames, rows, columns."""
        return CHANNELS * FRAMES * self.patch**2

    @property
    def window_groups(self) -> int:
        """Merged patches (2x2) along a window's side."""
        return self.window // (self.patch * MERGE)

    def is_full(self, block: int) -> bool:
        """True for a block with full attention."""
        return (block + 1) % self.full_every == 0

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file in order, with its shape in numpy order."""
        patch, merged = (self.hidden, CHANNELS, self.patch, self.patch), self.hidden * MERGE**2
        shapes: dict[str, tuple[int, ...]] = {"v.patch_embd.weight": patch, "v.patch_embd.weight.1": patch}
        for block in range(self.blocks):
            shapes |= {f"v.blk.{block}.{name}": shape for name, shape in self._block().items()}
        shapes["v.post_ln.weight"] = (self.hidden,)
        return shapes | _with_bias({"mm.0": (merged, merged), "mm.2": (self.out, merged)})

    def _block(self) -> dict[str, tuple[int, ...]]:
        square, wide = (self.hidden, self.hidden), (self.feed_forward, self.hidden)
        linear = {f"attn_{name}": square for name in ("q", "k", "v", "out")}
        linear |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
        return {"ln1.weight": (self.hidden,), "ln2.weight": (self.hidden,), **_with_bias(linear)}

    def fault(self) -> str:
        """The first inconsistent hyperparameter; empty when all are consistent."""
        rules = {
            f"hidden size {self.hidden} and {self.heads} heads: expected a head size that is a multiple of 4": (
                self.hidden % (4 * self.heads) == 0
            ),
            f"{self.blocks} blocks: expected a multiple of the full-attention period, {self.full_every}": (
                self.blocks % self.full_every == 0
            ),
            f"a window of {self.window} pixels: expected a multiple of {MERGE * self.patch}": (
                self.window % (MERGE * self.patch) == 0
            ),
        }
        return next((fault for fault, holds in rules.items() if not holds), "")


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How images become patches, and the prompt that they get in the text model.

    `prompt` has the token ids around an image, with one `image_token` in it; a published file lacks both. `source`
    names the checkpoint.
    """

    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    prompt: tuple[int, ...] = ()
    image_token: int | None = None
    family: str = ""
    source: str = ""


def _with_bias(linear: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    both: dict[str, tuple[int, ...]] = {}
    for name, shape in linear.items():
        both |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return both
