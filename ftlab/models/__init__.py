"""The model of an experiment: tokenizer, base, quantisation and adapters."""

from ftlab.models.adapters import (
    adapts_tied_weights,
    add_adapter,
    check_adapter,
    load_adapter,
    planned_parameters,
)
from ftlab.models.bases import Bases, base_key, leaves_base
from ftlab.models.compatibility import carries_state, check_rows, check_settings
from ftlab.models.load import (
    check_forward,
    count,
    load_base,
    load_tokenizer,
    quantization_config,
    skeleton,
    switch_activation_checkpointing,
)
from ftlab.models.result_folder import load_result, save_beside, save_result
from ftlab.models.targets import find_targets

__all__ = [
    "Bases",
    "adapts_tied_weights",
    "add_adapter",
    "base_key",
    "carries_state",
    "check_adapter",
    "check_forward",
    "check_rows",
    "check_settings",
    "count",
    "find_targets",
    "leaves_base",
    "load_adapter",
    "load_base",
    "load_result",
    "load_tokenizer",
    "planned_parameters",
    "quantization_config",
    "save_beside",
    "save_result",
    "skeleton",
    "switch_activation_checkpointing",
]
