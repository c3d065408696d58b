"""An adapter that was trained elsewhere becomes a stage whose settings are stated."""

from collections.abc import Sequence
from pathlib import Path

from heft_pipeline.command_line.secrets_kept import refuse_secrets_typed
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import make_run
from heft_pipeline.plan.sources import Sources
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store


def stated_stage(settings: Sequence[str], store: Store) -> StageSpec:
    """The last stage of the run that settings describe.

    Args:
        settings: What a run's command line says, e.g. ``method=lora`` and ``lora.rank=16``.
        store: The store.

    Raises:
        UserError: A setting, the model or the data cannot be used; the message names the setting.
    """
    refuse_secrets_typed(settings)
    from hydra import compose, initialize_config_dir

    from heft_pipeline.settings.checks import typed
    from heft_pipeline.settings.refused_overrides import explained
    from heft_pipeline.settings.schema import config_dir, register

    register()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = typed(compose("config", [*settings, "sweep=adopted"]))
    except Exception as error:
        if said := explained(error, settings):
            raise UserError(said) from error
        raise
    return make_run(config, Sources(store.digests), "adopted", settings).last


def adopt(stage: StageSpec, folder: Path, store: Store) -> float:
    """Make an adapter that was trained elsewhere the adapter of a stage, and evaluate it.

    Args:
        stage: The stage, which says how the adapter was trained.
        folder: What PEFT's ``save_pretrained``, or pyreft's ``ReftModel.save``, wrote.
        store: Where the stage is added; what it stands on is there.

    Returns:
        The accuracy.

    Raises:
        UserError: The adapter is not one of these settings, the stage is there already, or one
            that it stands on is not.
    """
    if len(stage.adapters) != 1:
        what = "trains nothing" if not stage.adapters else f"trains {stage.name} at once"
        raise UserError(f"{stage.label} {what}; adopt takes a stage with one adapter")
    there = UserError(
        f"stage {stage.fingerprint} ({stage.label}) is in {store.output_dir} already; remove it "
        "first, or state the settings that this adapter was trained with"
    )
    if store.is_complete(stage.fingerprint):
        raise there
    if stage.parent is not None:
        try:
            store.require_whole(stage.parent)
        except UserError as error:
            raise UserError(f"{stage.label} stands on {stage.parent.label}: {error}") from error
    # These import torch.
    from heft_pipeline.stage.preflight import preflight
    from heft_pipeline.stage.run_stage import run_stage, started_from

    saved = folder.expanduser().resolve()
    started = started_from(stage, saved)
    store.require_writable()
    try:
        Sources(store.digests).adapter(started.adapters[0])
        preflight([started], store.tokenized)
    except UserError as error:  # in the words of what was typed here
        said = str(error).replace(f"{stage.kind}.init_from={saved}", str(saved))
        raise UserError(said) from error
    result = run_stage(stage, store, trained_in=saved).result
    if result.get("trained_elsewhere") != str(saved):  # damaged and mended, or made meanwhile
        raise there
    return float(result["accuracy"])
