"""The base model of a run: found, hashed, loaded, checked, and given its adapter."""

from functools import partial

from torch import nn
from transformers import PreTrainedModel, set_seed

from ftlab import models, weights
from ftlab.checksums import Checksums, changed
from ftlab.errors import RunDirError, WeightsError
from ftlab.experiment.device import flops_per_token
from ftlab.experiment.interface import Run
from ftlab.experiment.prepare import Prepared
from ftlab.experiment.records import Records
from ftlab.fast.decoder import Decoder
from ftlab.fast.recognise import fast_path
from ftlab.stages.stage import LoadedModel
from ftlab.train.loss import rows_interact
from ftlab.weights import WeightsFolder


class Base:
    """The base model's files, which are hashed while the model loads, and the model itself."""

    def __init__(self, run: Run, records: Records) -> None:
        self.run, self.records, self.cfg = run, records, run.cfg
        with run.ranks.first_before_others():
            self.located = weights.find(self.cfg.model)
        files = weights.base_files(self.located.folder)
        self._checksums: Checksums | None = Checksums(files) if run.ranks.rank == 0 else None

    def load(self, prepared: Prepared) -> LoadedModel:
        """Load the base, or take it from the base-model cache, quantise it as configured, and test a forward pass.

        Raises:
            WeightsError: the weights cannot be used.
        """
        run, cfg = self.run, self.cfg
        device = run.accelerator.device
        load = partial(models.load_base, self.located, cfg.model, cfg.quant, device=device, full=cfg.lora.r == 0)
        base = run.trial.bases.checkout(_key(run, self.located), load) if run.trial else load()
        recorded = self.records.summary.model
        if recorded:
            recorded.id, recorded.revision, recorded.origin = cfg.model.id, self.located.revision, self.located.origin
        with run.accelerator.autocast():
            models.check_forward(base, cfg.model.id, cfg.quant)
            flat = not models.carries_state(base) and not rows_interact(base, prepared.train.encoded, device)
        return LoadedModel(base, self._decoder(base), run.accelerator, flat)

    def record_files(self, resumed: bool = False) -> None:
        """Record the hashes of the base's files, once they are computed. With `resumed`, they must equal those on
        record, since earlier scores or training steps are used again.

        Raises:
            RunDirError: names the files that have changed.
            WeightsError: a file cannot be read any more.
        """
        recorded = self.records.summary.model
        if self._checksums is None or recorded is None:
            return
        try:
            found = self._checksums.result()
        except OSError as error:
            raise WeightsError(f"model.id={self.cfg.model.id}: its files cannot be read any more ({error})") from None
        differ = changed(recorded.sha256, found) if resumed else []
        if differ and recorded.sha256:
            raise RunDirError(
                f"run_dir={self.cfg.run_dir}: the base model.id={self.cfg.model.id} has changed since the run began "
                f"({', '.join(differ)}). Restore its old files, choose another run_dir=DIR, or start again with "
                "force=true"
            )
        if differ:
            self.run.terminal.note("the run has no hash of its base model on record: ftlab cannot check for changes")
        recorded.sha256, self._checksums = found, None

    def adapt(self, base: LoadedModel) -> LoadedModel:
        """Return the base with a new adapter, or the base itself if all weights are trained."""
        cfg, terminal, summary = self.cfg, self.run.terminal, self.records.summary
        set_seed(cfg.seed)
        assert isinstance(base.model, PreTrainedModel)
        model: nn.Module = models.add_adapter(base.model, cfg.lora) if cfg.lora.r else base.model
        summary.trainable_parameters, summary.parameters = models.count(model)
        self.records.flops_per_token = flops_per_token(base.model, summary.parameters, cfg)
        decoder = self._decoder(model) if base.decoder else None
        if not base.flat and not decoder:  # the fast path separates rows itself
            why = "LLM.int8() rounds by batch" if cfg.quant.load_in_8bit else "this architecture mixes rows"
            terminal.warn(f"each forward pass has one row, because rows of a batch would influence each other: {why}")
        if models.adapts_tied_weights(base.model, model):
            terminal.warn("the output layer shares its weights with the embedding, but the adapter changes only one")
        trained, total = summary.trainable_parameters, summary.parameters
        terminal.note(f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f} %)")
        return LoadedModel(model, decoder, base.accelerator, base.flat)

    def _decoder(self, model: nn.Module) -> Decoder | None:
        """Return the model's layers for the fast path, or None after printing the reason."""
        decoder, reason = fast_path(model, self.run.accelerator.autocast)
        if reason:
            self.run.terminal.note(f"slower path, {reason}")
        return decoder


def checkin(run: Run, model: nn.Module) -> None:
    """Return the base of a trial's model to the base-model cache, for the next trial."""
    if run.trial and models.leaves_base(run.cfg.lora):
        run.trial.bases.checkin(model)


def _key(run: Run, located: WeightsFolder) -> str:
    cfg = run.cfg
    return models.base_key(located, cfg.model, cfg.quant, cfg.lora.r == 0, str(run.accelerator.device))
