"""The fastest setting that fits is chosen, and after an out-of-memory the next that needs less."""

import itertools
from typing import Any

import pytest
import torch

from ftlab.config import TrainerConfig
from ftlab.data.encode import Encoded
from ftlab.fast.plan import CHECKPOINTED_FRACTIONS, Choices, Chooser, Planner, Setting

ALL = Choices([8, 4, 2, 1], [True, False], list(CHECKPOINTED_FRACTIONS))
COPY = 1000.0


def need(setting: Setting) -> float:
    """100 bytes a row that keeps everything, 10 of them where all is computed again; a copy of the weights."""
    return setting.micro * (100 - 90 * setting.checkpointed_fraction) + COPY * setting.keep_dequantized


def planner(free: float, choices: Choices = ALL, rows: int = 8) -> Planner:
    return Planner(choices, rows, lambda micro: 200 * micro, need, free)


def test_with_memory_for_everything_all_is_kept_and_all_rows_go_together() -> None:
    assert planner(1e9).best() == Setting(8, True, 0.0)


def test_what_is_chosen_always_fits_and_nothing_that_fits_is_faster() -> None:
    for free in range(10, 2000, 30):
        made = planner(free)
        best = made.best()
        fitting = [one for one in ALL.settings() if need(one) <= free]
        assert (best is None) == (not fitting)
        if best:
            assert need(best) <= free
            assert made.cost(best) == min(made.cost(one) for one in fitting)


def test_less_memory_never_gives_a_faster_setting() -> None:
    chosen = [planner(free).best() for free in range(2000, -10, -10)]
    costs = [planner(0).cost(setting) for setting in chosen if setting]
    assert costs == sorted(costs)
    kinds = [setting for setting, _ in itertools.groupby(chosen)]
    assert len(kinds) == len(set(kinds))  # none comes back
    assert kinds[0] == Setting(8, True, 0.0)
    assert kinds[-2:] == [Setting(1, False, 1.0), None]


def test_checkpointing_a_few_layers_comes_before_halving_small_batches() -> None:
    """With short rows, half micro-batches cost another dequantization of every weight."""
    made = Planner(ALL, 8, lambda micro: 20 * micro, need, need(Setting(8, False, 0.25)))
    assert made.best() == Setting(8, False, 0.25)


def test_halving_batches_of_long_rows_comes_before_checkpointing() -> None:
    made = Planner(ALL, 8, lambda micro: 5000 * micro, need, need(Setting(4, False, 0.0)))
    assert made.best() == Setting(4, False, 0.0)


def test_after_an_out_of_memory_everything_that_needs_as_much_is_out() -> None:
    made = planner(1e9)
    seen = []
    while (setting := made.best()) is not None:
        seen.append(setting)
        made.rule_out(setting)
    needs = [need(setting) for setting in seen]
    assert needs == sorted(set(needs), reverse=True)
    assert seen[-1] == made.smallest() == Setting(1, False, 1.0)


def test_an_out_of_memory_lowers_what_was_free_and_never_raises_it() -> None:
    made = planner(500.0)
    made.rule_out(Setting(8, True, 0.0))
    assert made.budget == 500.0
    made.rule_out(Setting(4, False, 0.0))
    assert made.budget < 400.0


@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_the_configuration_settles_is_kept(micro: int, cached: bool, share: float) -> None:
    fixed = Choices([micro], [cached], [share])
    assert planner(1e9, fixed).best() == Setting(micro, cached, share)
    assert planner(0, fixed).best() is None
    assert planner(0, fixed).smallest() == Setting(micro, cached, share)


def test_where_nothing_fits_the_smallest_is_tried() -> None:
    made = planner(1.0)
    assert made.best() is None
    assert made.smallest() == Setting(1, False, 1.0)


def test_settings_are_shown_as_overrides() -> None:
    assert str(Setting(4, True, 0.0)) == (
        "trainer.micro_batch_size=4, trainer.weight_cache=true, trainer.activation_checkpointing=false"
    )
    assert str(Setting(1, False, 0.5)).endswith("trainer.activation_checkpointing=true for 50% of the layers")
    assert str(Setting(1, False, 1.0)).endswith("trainer.activation_checkpointing=true")


# --- for whichever step -------------------------------------------------------------------------------------

ROWS = [Encoded(str(length), [1] * length, ((length - 5, length),)) for length in (10, 20, 30, 40)]


def of_tokens(tokens: int, scored: int, share: float) -> float:
    return 10 * tokens * (1 - 0.5 * share) + scored


def chooser(monkeypatch: pytest.MonkeyPatch, free: float, settle: Any = lambda setting: None, **cfg: Any) -> Chooser:
    """As on a GPU with so many bytes free."""
    monkeypatch.setattr("ftlab.fast.plan.available", lambda device: free)
    made = Chooser(
        TrainerConfig(global_batch_size=4, **cfg),
        torch.device("cpu"),
        of_tokens,
        settle,
        fractions=CHECKPOINTED_FRACTIONS,
    )
    made.cuda = True
    return made


def test_without_memory_for_a_copy_of_the_weights_the_batch_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Setting] = []
    for free in (3000.0, 1100.0):
        chooser(monkeypatch, free, taken.append).choose(ROWS, copy=1500)
    assert taken == [Setting(4, True, 0.0), Setting(4, False, 0.0)]


def test_if_dequantizing_runs_out_of_memory_the_next_setting_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Setting] = []

    def settle(setting: Setting) -> None:
        if setting.keep_dequantized:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        taken.append(setting)

    made = chooser(monkeypatch, 1e9, settle)
    made.choose(ROWS, copy=1500)
    assert taken == [Setting(4, False, 0.0)]
    assert made.had_oom


def test_what_is_still_to_come_is_left_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Setting] = []
    for coming in (0.0, 500.0, 900.0):
        chooser(monkeypatch, 1100.0, taken.append).choose(ROWS, coming=coming)
    needs = [
        of_tokens(sum(len(r.input_ids) for r in ROWS[-one.micro :]), 5 * one.micro, one.checkpointed_fraction)
        for one in taken
    ]
    assert all(needed <= 1100.0 - coming for needed, coming in zip(needs, (0.0, 500.0), strict=False))
    assert taken[0] == Setting(4, False, 0.0)
    assert taken[-1] == Setting(1, False, 1.0)  # nothing fits beside: the smallest is tried


def test_rows_that_interact_go_one_by_one_whatever_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Setting] = []
    made = chooser(monkeypatch, 1e9, taken.append, micro_batch_size=4)
    made.together = False
    made.choose(ROWS)
    assert taken == [Setting(1, False, 0.0)]


def test_dequantized_weights_required_by_the_configuration_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    made = chooser(monkeypatch, 0.0, weight_cache=True)
    assert made.remedies(Setting(1, True, 0.0)) == ["trainer.weight_cache=auto"]
    assert made.remedies(Setting(1, False, 0.0)) == []  # the base is not 4-bit
