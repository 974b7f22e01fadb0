"""The closed form of a run's memory: what makes a run larger makes the estimate larger, and measurement corrects it."""

import pytest
from transformers import AutoConfig

from ftlab import compose
from ftlab.fast.plan import Setting
from ftlab.memory import batch as batch_memory
from ftlab.memory import estimate as closed_form


def estimate(small: list[str], *overrides: str) -> float:
    return closed_form.estimate(compose([*small, "run_dir=x", *overrides]))


@pytest.mark.parametrize(
    "smaller",
    ["quant=nf4", "lora.r=2", "trainer.micro_batch_size=1", "data.max_length=64", "trainer.optim=adamw_8bit"],
)
def test_what_saves_memory_lowers_the_estimate(smaller: str, small: list[str]) -> None:
    assert 0 < estimate(small, smaller) < estimate(small)


def test_activation_checkpointing_saves_memory_in_a_deep_model() -> None:
    deep = ["model=tiny", "data=sql_synth", "run_dir=x"]
    plain, checkpointed = (
        closed_form.estimate(compose([*deep, f"trainer.activation_checkpointing={on}"])) for on in ("false", "true")
    )
    assert checkpointed < plain


def test_the_estimate_is_that_of_the_leanest_setting(small: list[str]) -> None:
    """A trial that may take small batches, compute layers twice and unpack no weights is not refused for what it would
    take without."""
    auto = ["trainer.micro_batch_size=auto", "quant=nf4"]
    leanest = ["trainer.micro_batch_size=1", "trainer.weight_cache=false", "trainer.activation_checkpointing=true"]
    assert estimate(small, *auto) == estimate(small, "quant=nf4", *leanest)
    for forced in ("trainer.micro_batch_size=4", "trainer.weight_cache=true", "trainer.activation_checkpointing=false"):
        assert estimate(small, *auto, forced) > estimate(small, *auto)


def test_a_setting_is_estimated_by_its_rows_and_its_unpacked_weights(small: list[str]) -> None:
    cfg = compose([*small, "run_dir=x", "quant=nf4"])
    lean, rows, cached = (
        closed_form.parts(cfg, one) for one in (Setting(1, False, 0.0), Setting(4, False, 0.0), Setting(1, True, 0.0))
    )
    assert rows.batch == pytest.approx(4 * lean.batch, rel=1e-2)
    assert (rows.fixed, cached.batch) == (lean.fixed, lean.batch)
    unpacked = cached.fixed - lean.fixed
    whole = closed_form.parts(compose([*small, "run_dir=x"]), Setting(1, False, 0.0)).fixed
    assert lean.fixed < whole < lean.fixed + unpacked  # the 4-bit form stays beside


@pytest.mark.parametrize("kind", ["gpt2", "opt", "mamba", "gemma3n_text"])
def test_architectures_with_other_names_are_estimated_too(kind: str) -> None:
    """A model that trains by its own forward pass has a planner as well."""
    config = AutoConfig.for_model(kind)
    few, many = (batch_memory.batch_bytes(config, 2, tokens, tokens, 0.0, dropout=True) for tokens in (100, 200))
    assert 0 < few < many
    assert batch_memory.batch_bytes(config, 2, 100, 100, 1.0, dropout=True) < few


def test_peaks_of_other_runs_correct_the_batchs_part(small: list[str]) -> None:
    cfg = compose([*small, "run_dir=x"])
    mine = closed_form.parts(cfg)
    assert closed_form.estimate(cfg, [(mine, mine.fixed + 3 * mine.batch)]) == pytest.approx(
        mine.fixed + 3 * mine.batch
    )
    assert closed_form.estimate(cfg, [(mine, mine.fixed / 2)]) == pytest.approx(mine.total)
