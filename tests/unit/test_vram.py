"""The closed form of a run's memory: what makes a run larger makes the estimate larger, and measurement corrects it."""

import pytest

from ftlab import compose, vram


def estimate(small: list[str], *overrides: str) -> float:
    return vram.estimate(compose([*small, "run_dir=x", *overrides]))


@pytest.mark.parametrize(
    "smaller",
    ["quant=nf4", "lora.r=2", "trainer.micro_batch_size=1", "data.max_length=64", "trainer.optim=adamw_8bit"],
)
def test_what_saves_memory_lowers_the_estimate(smaller: str, small: list[str]) -> None:
    assert 0 < estimate(small, smaller) < estimate(small)


def test_activation_checkpointing_saves_memory_in_a_deep_model() -> None:
    deep = ["model=tiny", "data=sql_synth", "run_dir=x"]
    plain, checkpointed = (
        vram.estimate(compose([*deep, f"trainer.activation_checkpointing={on}"])) for on in ("false", "true")
    )
    assert checkpointed < plain


def test_peaks_of_other_runs_correct_the_batchs_part(small: list[str]) -> None:
    cfg = compose([*small, "run_dir=x"])
    mine = vram.parts(cfg)
    assert vram.estimate(cfg, [(mine, mine.fixed + 3 * mine.batch)]) == pytest.approx(mine.fixed + 3 * mine.batch)
    assert vram.estimate(cfg, [(mine, mine.fixed / 2)]) == pytest.approx(mine.total)
