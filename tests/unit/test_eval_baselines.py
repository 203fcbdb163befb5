"""The wrappers of other people's models, at toy size with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modality_forcing.evaluation.predictors import PluginPredictor

BASELINES = Path(__file__).resolve().parents[2] / "baselines"
IMAGES = [np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)] * 2


@pytest.fixture(scope="module")
def marigold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MarigoldDepthPipeline of a few thousand parameters."""
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("marigold")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "a"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    pipeline = diffusers.MarigoldDepthPipeline(
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=8, out_channels=4,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=8, norm_num_groups=4,
            attention_head_dim=4, **blocks,
        ),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        scheduler=diffusers.DDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", beta_schedule="scaled_linear"
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
            )
        ),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8),
        default_denoising_steps=2,
        default_processing_resolution=32,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def test_marigold(marigold: Path) -> None:
    predictor = PluginPredictor(
        f"{BASELINES / 'marigold.py'}:Marigold", {"model": str(marigold), "steps": "1"}
    )
    assert predictor.promise == "affine" and predictor.facts["num_inference_steps"] == 1
    first, second = predictor.predict(IMAGES, ["", ""], [1, 1])
    assert first.depth.shape == (40, 56) and np.isfinite(first.depth).all()
    np.testing.assert_array_equal(first.depth, second.depth)
    (other,) = predictor.predict(IMAGES[:1], [""], [2])
    assert not np.array_equal(first.depth, other.depth)


@pytest.mark.parametrize(("metric", "promise"), [("relative", "disparity"), ("metric", "metric")])
def test_transformers(tmp_path: Path, metric: str, promise: str) -> None:
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    torch.manual_seed(0)
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(
            image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            out_features=["stage1", "stage2"], reshape_hidden_states=False, apply_layernorm=True,
        ),
        reassemble_hidden_size=16, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 8], fusion_hidden_size=8,
        head_hidden_size=8, patch_size=14, depth_estimation_type=metric,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path, safe_serialization=True)
    DPTImageProcessor(
        size={"height": 28, "width": 28}, ensure_multiple_of=14, keep_aspect_ratio=False
    ).save_pretrained(tmp_path)
    predictor = PluginPredictor(
        f"{BASELINES / 'transformers_depth.py'}:DepthModel", {"model": str(tmp_path), "device": "cpu"}
    )
    assert predictor.promise == promise
    (found,) = predictor.predict(IMAGES[:1], [""], [0])
    assert found.depth.shape == (40, 56) and np.isfinite(found.depth).all()
