"""Every configuration dataclass. Imports nothing of the project's but its errors, and never torch.

A configuration is made as preset <- file <- ``key=value`` overrides; an unknown key or a value of the
wrong kind is an error that names it.
"""

from modality_forcing.config.model import (
    AutoencoderConfig,
    DepthConfig,
    FlowConfig,
    ModelConfig,
    RefinerConfig,
    SamplerConfig,
    TextConfig,
    TransformerConfig,
)
from modality_forcing.config.parsing import from_dict, override, to_dict
from modality_forcing.config.recipe import MakeConfig
from modality_forcing.config.training import (
    STAGES,
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    ForcingConfig,
    LogConfig,
    LoraConfig,
    OptimConfig,
    ParallelConfig,
    RefineConfig,
    SensorConfig,
    SourceConfig,
    TrainConfig,
)

__all__ = [
    "STAGES",
    "AugmentConfig",
    "AutoencoderConfig",
    "CheckpointConfig",
    "DataConfig",
    "DepthConfig",
    "FlowConfig",
    "ForcingConfig",
    "LogConfig",
    "LoraConfig",
    "MakeConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "RefineConfig",
    "RefinerConfig",
    "SamplerConfig",
    "SensorConfig",
    "SourceConfig",
    "TextConfig",
    "TrainConfig",
    "TransformerConfig",
    "from_dict",
    "override",
    "to_dict",
]
