"""Parameters in one buffer: nothing that reads or writes them through their modules notices."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from ftlab.fast.decoder import Decoder
from ftlab.fast.flat import BLOCK, Flat


def some(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def test_values_stay_and_are_views_of_the_buffer() -> None:
    a, b, c = some((3, 5), (4, 5), (300,))
    before = [parameter.detach().clone() for parameter in (a, b, c)]
    flat = Flat([[a, b], [c]])
    assert all(torch.equal(parameter, value) for parameter, value in zip((a, b, c), before, strict=True))
    with torch.no_grad():
        flat.parameter.mul_(2)
    assert all(torch.equal(parameter, 2 * value) for parameter, value in zip((a, b, c), before, strict=True))
    with torch.no_grad():
        a.fill_(7)
    assert torch.equal(flat.view(flat.parameter.detach(), a), torch.full((3, 5), 7.0))


def test_an_optimizer_of_the_buffer_steps_every_parameter() -> None:
    flat_ones, alone = some((3, 5), (70,)), some((3, 5), (70,))
    flat = Flat([[flat_ones[0]], [flat_ones[1]]])
    for parameter, twin in zip(flat_ones, alone, strict=True):
        gradient = torch.randn(parameter.shape)
        parameter.grad.copy_(gradient)  # type: ignore[union-attr]
        twin.grad = gradient
    for parameters in ([flat.parameter], alone):
        torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1).step()
    for parameter, twin in zip(flat_ones, alone, strict=True):
        torch.testing.assert_close(parameter, twin)


def test_autograd_writes_into_the_gradient_in_place() -> None:
    a, b = some((3, 5), (4,))
    flat = Flat([[a], [b]])
    (2 * a).sum().backward()
    (2 * a).sum().backward()
    assert torch.equal(flat.view(flat.gradient, a), torch.full((3, 5), 4.0))
    assert not flat.view(flat.gradient, b).any()
    assert flat.parameter.grad is flat.gradient


def test_no_two_groups_share_a_block_and_a_group_has_no_gap() -> None:
    parameters = some((3, 5), (4, 5), (BLOCK,), (1,), (BLOCK + 1,))
    flat = Flat([parameters[:2], *([one] for one in parameters[2:])])
    starts = [parameter.storage_offset() for parameter in parameters]
    assert starts == [0, 15, BLOCK, 2 * BLOCK, 3 * BLOCK]
    assert flat.parameter.numel() == 5 * BLOCK
    assert flat.stack(flat.parameter.detach(), parameters[:2]).shape == (7, 5)
    assert torch.equal(flat.stack(flat.parameter.detach(), parameters[:2]), torch.cat(parameters[:2]).detach())


def test_gaps_stay_zero_through_optimizer_steps(kit: Any) -> None:
    model = kit.adapt(kit.make())
    step = kit.step(model)
    gaps = torch.ones_like(step.flat.gradient, dtype=torch.bool)
    for parameter in step.flat.members:
        step.flat.view(gaps, parameter).fill_(False)
    optimizer = torch.optim.AdamW([step.flat.parameter], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        kit.fast(model, step, kit.rows())
        optimizer.step()
    assert gaps.any()
    assert not step.flat.parameter[gaps].any()
    assert not step.flat.gradient[gaps].any()


def test_pefts_own_saving_and_loading(kit: Any, tmp_path: Path) -> None:
    model = kit.adapt(kit.make())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(tmp_path / "before")
    flat = Flat(Decoder(model).parameters())
    model.save_pretrained(tmp_path / "flat")
    mine, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("flat", "before"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    again = PeftModel.from_pretrained(kit.make(), str(tmp_path / "flat"))
    loaded = dict(again.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.items())
    with torch.no_grad():
        flat.parameter.zero_()
    model.load_adapter(str(tmp_path / "before"), "default")
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in before.items())
    assert flat.parameter.any()  # loaded into the buffer


def test_released_parameters_have_memory_of_their_own() -> None:
    a, b = some((3, 5), (4,))
    flat = Flat([[a], [b]])
    value = a.detach().clone()
    flat.release()
    with torch.no_grad():
        flat.parameter.zero_()
    assert torch.equal(a, value)
    assert a.grad is None
    assert a.untyped_storage().nbytes() == a.nbytes


@pytest.mark.parametrize(("dtypes", "fits"), [(["float32"] * 2, True), (["float32", "bfloat16"], False)])
def test_only_float32_together(dtypes: list[str], fits: bool) -> None:
    parameters = [nn.Parameter(torch.zeros(3, dtype=getattr(torch, dtype))) for dtype in dtypes]
    assert Flat.fits(parameters) is fits
    assert not Flat.fits([nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])


def test_other_buffers_have_the_same_layout() -> None:
    a, b = some((3, 5), (4,))
    flat = Flat([[a], [b]])
    other = flat.like(torch.bfloat16)
    assert other.dtype == torch.bfloat16
    assert other.shape == flat.parameter.shape
    flat.view(other, b).fill_(1)
    assert other.nonzero().flatten().tolist() == [BLOCK, BLOCK + 1, BLOCK + 2, BLOCK + 3]
