"""The checkpoint's configuration files, as jina-embeddings-v4 has them at the starter's size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starter_recipe.model import MATRYOSHKA_DIMS, TASKS, Shape

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_POSITIONS = 32768
VISION = {
    "depth": 2,
    "hidden_size": 64,
    "num_heads": 4,
    "intermediate_size": 128,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "in_channels": 3,
    "in_chans": 3,
    "out_hidden_size": 256,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "hidden_act": "silu",
    "model_type": "qwen2_5_vl",
    "tokens_per_second": 2,
}


def text_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the text tower's part."""
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": shape.layers,
        "rms_norm_eps": shape.epsilon,
        "rope_theta": shape.theta,
        "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default", "type": "default"},
        "sliding_window": None,
        "use_sliding_window": False,
        "use_cache": True,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "vocab_size": shape.vocabulary,
        "bos_token_id": end_of_text,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": end_of_text,
        "torch_dtype": "bfloat16",
    }


def model_config(tokenizer: Tokenizer, shape: Shape | None = None) -> dict[str, Any]:
    """Return config.json."""
    shape = shape or Shape()
    text = text_config(shape, tokenizer)
    return {
        "architectures": ["JinaEmbeddingsV4Model"],
        "model_type": "jina_embeddings_v4",
        "_name_or_path": "",
        **text,
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "matryoshka_dims": list(MATRYOSHKA_DIMS),
        "task_names": list(TASKS),
        "truncate_dim": None,
        "single_vector_pool_strategy": "mean",
        "multi_vector_projector_dim": shape.multi_vector,
        "text_config": {"model_type": "qwen2_5_vl_text", **text},
        "vision_config": VISION,
        "transformers_version": "4.52.0",
    }


def adapter_config(shape: Shape | None = None) -> dict[str, Any]:
    """Return adapters/adapter_config.json."""
    rank = (shape or Shape()).rank
    linears = "down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj"
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "corda_config": None,
        "eva_config": None,
        "exclude_modules": ".*visual.*",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": rank,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": f"(.*(model).*({linears}).*$|.*(multi_vector_projector).*$)",
        "task_names": list(TASKS),
        "task_type": "FEATURE_EXTRACTION",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_rslora": False,
    }


def preprocessor_config() -> dict[str, Any]:
    """Return preprocessor_config.json."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "JinaEmbeddingsV4Processor",
        "max_pixels": 602112,
        "min_pixels": 3136,
        "merge_size": 2,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
