"""The attention implementation that an architecture supports."""

from transformers import PreTrainedModel

from ftlab.errors import ConfigError, first_line

# The attributes by which a class of transformers declares support, by the beginning of the implementation's name.
SUPPORT = {"sdpa": "_supports_sdpa", "flash_attention": "_supports_flash_attn", "flex_attention": "_supports_flex_attn"}


def attention_of(bare: PreTrainedModel, asked: str) -> str:
    """Return `asked`; if the architecture of `bare` does not support it, torch's attention or the plain one ("eager").

    Raises:
        ConfigError: the implementation does not exist, or this machine cannot run it.
    """
    if "/" in asked:  # a kernel from the Hub
        return asked
    try:
        bare.get_correct_attn_implementation(asked, is_init_check=True)
    except (ValueError, ImportError) as error:
        if not _lacks(bare, asked):
            raise ConfigError(
                f"model.attn_implementation={asked} cannot be used: {first_line(error)} "
                f"Choose {'sdpa' if not _lacks(bare, 'sdpa') else 'eager'}"
            ) from None
        return "eager" if _lacks(bare, "sdpa") else "sdpa"
    return asked


def _lacks(bare: PreTrainedModel, name: str) -> bool:
    flag = next((flag for beginning, flag in SUPPORT.items() if name.startswith(beginning)), None)
    return flag is not None and not getattr(bare, flag, False)
