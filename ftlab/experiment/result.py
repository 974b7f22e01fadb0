"""The result of training: adapter/ (or model/) in the run folder, written and loaded."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from ftlab import models, weights
from ftlab.checksums import Checksums, changed
from ftlab.config import ExperimentConfig
from ftlab.disk import room_for
from ftlab.fast.decoder import Decoder
from ftlab.fast.recognise import fast_path
from ftlab.generate import generation_config
from ftlab.out_of_memory import explain_oom, oom_remedies
from ftlab.run_dir import RunDir
from ftlab.summary import Summary
from ftlab.weights import WeightsFolder


def save(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    located: WeightsFolder,
    folder: RunDir,
    cfg: ExperimentConfig,
    summary: Summary,
) -> None:
    """Write adapter/ (or model/) under another name first, so that it is either complete or absent.

    Raises:
        TrainingError: the disk is full.
    """
    name = "adapter" if cfg.lora.r else "model"
    aside = folder / f"{name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    needed = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    with room_for(f"{folder.path / name}", folder.path, needed):
        models.save_result(model, aside, cfg.model.id)
    prompt = {"template": cfg.data.prompt, "max_length": cfg.data.max_length}
    generation = generation_config(tokenizer, cfg.eval.max_new_tokens)
    models.save_beside(aside, tokenizer, prompt, generation, _card(cfg, summary, located))
    shutil.rmtree(folder / name, ignore_errors=True)
    aside.rename(folder / name)


def _card(cfg: ExperimentConfig, summary: Summary, located: WeightsFolder) -> str:
    """Return a short model card: what the result is, its prompt template and its scores."""
    tuned, base = summary.tuned, summary.base
    whole = sorted(key for key in tuned if key.count("/") == 1)  # without those by kind of row
    before = {key: f"{base[key]:.4f}" if key in base else "-" for key in whole}  # a trial's base is not scored
    lines = [f"| {key} | {before[key]} | {tuned[key]:.4f} |" for key in whole]
    table = "\n".join(["| metric | base | tuned |", "| --- | --- | --- |", *lines])
    return (
        f"---\nbase_model: {cfg.model.id}\nlibrary_name: {'peft' if cfg.lora.r else 'transformers'}\n---\n\n"
        f"# {cfg.run_name}\n\n{cfg.model.id} (revision {located.revision}) tuned with ftlab on {cfg.data.name} "
        f"(sha256 {str(summary.data_sha256)[:12]}), {summary.step} steps of {cfg.trainer.global_batch_size} rows.\n\n"
        f"## Prompt\n\n```\n{cfg.data.prompt}\n```\n\n## Scores\n\n{table}\n"
    )


def load_finished(
    run: Path, cfg: ExperimentConfig, accelerator: Accelerator
) -> tuple[PreTrainedTokenizerBase, nn.Module, Decoder | None, str | None]:
    """Return the tokenizer and the tuned model of a finished run, its decoder for the fast path or None, and the reason
    if it has none.

    Raises:
        WeightsError: the folder holds no result, or its base cannot be found.
        TrainingError: too little GPU memory.
    """
    with explain_oom("load", *oom_remedies(cfg, "load", trained=True)):
        tokenizer, model = models.load_result(run, cfg, accelerator.device)
        with accelerator.autocast():
            models.check_forward(model, cfg.model.id, cfg.quant)
        return tokenizer, model, *fast_path(model, accelerator.autocast)


def base_differs(sha256: Mapping[str, str], cfg: ExperimentConfig) -> str | None:
    """Return a warning if the base of a finished run has changed since its adapter was trained; `sha256` holds the
    recorded hash of each file."""
    if not sha256 or cfg.lora.r == 0:  # a run that trained all weights has its own copy
        return None
    differ = changed(sha256, Checksums(weights.base_files(weights.find(cfg.model).folder)).result())
    if not differ:
        return None
    return (
        f"the base model.id={cfg.model.id} has changed since the adapter was trained on it ({', '.join(differ)}), so "
        "the answers differ from those of the run: restore its old files, or train again"
    )
