"""The base model of a run: found, hashed, loaded, checked, and given its adapter."""

from functools import partial

from torch import nn
from transformers import PreTrainedModel, set_seed

from ftlab import models, weights
from ftlab.checksums import Checksums, changed
from ftlab.errors import RunDirError, WeightsError
from ftlab.experiment.device import flops_per_token
from ftlab.experiment.parts import Run
from ftlab.experiment.prepare import Prepared
from ftlab.experiment.records import Records
from ftlab.fast.decoder import Decoder
from ftlab.fast.recognise import fast_path
from ftlab.stages.stage import LoadedModel
from ftlab.train.loss import rows_interact
from ftlab.weights import WeightsFolder


class Base:
    """The base model's files, which are hashed beside the load, and the model that is made of them."""

    def __init__(self, run: Run, records: Records) -> None:
        self.run, self.records, self.cfg = run, records, run.cfg
        with run.ranks.first_before_others():
            self.located = weights.find(self.cfg.model)
        files = weights.base_files(self.located.folder)
        self._checksums: Checksums | None = Checksums(files) if run.ranks.rank == 0 else None

    def load(self, prepared: Prepared) -> LoadedModel:
        """The base, from the cache where there is one, quantised as asked, and tried.

        Raises:
            WeightsError: weights that cannot be used.
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
        """Put the hashes of the base's files on record, once they are known. Scores or training that are `resumed` must
        be of the same files.

        Raises:
            RunDirError: names the files that have changed.
            WeightsError: a file is gone.
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
                f"({', '.join(differ)}): put its old files back, choose another run_dir=DIR, or begin anew with "
                "force=true"
            )
        if differ:
            self.run.terminal.note("the run's record has no hash of its base: whether that has changed is not known")
        recorded.sha256, self._checksums = found, None

    def adapt(self, base: LoadedModel) -> LoadedModel:
        """The base in its adapter, or the base itself where all weights are trained."""
        cfg, terminal, summary = self.cfg, self.run.terminal, self.records.summary
        set_seed(cfg.seed)
        assert isinstance(base.model, PreTrainedModel)
        model: nn.Module = models.add_adapter(base.model, cfg.lora) if cfg.lora.r else base.model
        summary.trainable_parameters, summary.parameters = models.count(model)
        self.records.flops_per_token = flops_per_token(base.model, summary.parameters, cfg)
        decoder = self._decoder(model) if base.decoder else None
        if not base.flat and not decoder:  # the fast path keeps rows apart itself
            why = "LLM.int8() rounds by batch" if cfg.quant.load_in_8bit else "this architecture mixes rows"
            terminal.warn(f"rows of a flat batch would see each other ({why}): one row a forward pass")
        if models.adapts_tied_weights(base.model, model):
            terminal.warn("the output layer shares its weights with the embedding; the adapter changes one of them")
        trained, total = summary.trainable_parameters, summary.parameters
        terminal.note(f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f} %)")
        return LoadedModel(model, decoder, base.accelerator, base.flat)

    def _decoder(self, model: nn.Module) -> Decoder | None:
        """The model's layers for the fast path, or None, with one line that says why."""
        decoder, reason = fast_path(model, self.run.accelerator.autocast)
        if reason:
            self.run.terminal.note(f"slower path, {reason}")
        return decoder


def checkin(run: Run, model: nn.Module) -> None:
    """A trial's model is no longer needed; its base may serve the next trial."""
    if run.trial and models.leaves_base(run.cfg.lora):
        run.trial.bases.checkin(model)


def _key(run: Run, located: WeightsFolder) -> str:
    cfg = run.cfg
    return models.base_key(located, cfg.model, cfg.quant, cfg.lora.r == 0, str(run.accelerator.device))
