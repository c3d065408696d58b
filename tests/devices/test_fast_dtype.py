"""The dtype that model.dtype=auto chooses, by what the hardware has."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from heft_pipeline.adapters.adapter import Target
from heft_pipeline.adapters.reft.adapter import ReftAdapter
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.devices import fast_dtype
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import base_dtype
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.loop import Interrupted

ComposeRun = Callable[..., Run]
#: Unlike the module's attribute, not replaced in tests.
HAS_FAST_BFLOAT16 = fast_dtype.has_fast_bfloat16
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
PLAIN, BF16 = "avx2 avx512f avx512bw", "avx2 avx512f avx512_bf16"


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Gives this machine a CPU with some flags, which torch's functions know of or do not."""

    def given(flags: str, torch_knows: bool) -> None:
        found = {
            "_is_amx_tile_supported": lambda: "amx_bf16" in flags.split(),
            "_is_avx512_bf16_supported": lambda: "avx512_bf16" in flags.split(),
            "_is_avx512_supported": lambda: "avx512f" in flags.split(),
        }
        monkeypatch.setattr(torch, "cpu", SimpleNamespace(**(found if torch_knows else {})))
        listed = "an old CPU" if torch_knows else flags
        (tmp_path / "cpuinfo").write_text(
            f"processor\t: 0\nmodel name\t: Some: CPU\nflags\t\t: {listed}\n\nprocessor\t: 1\n"
        )
        monkeypatch.setattr(fast_dtype, "_CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(fast_dtype, "has_fast_bfloat16", HAS_FAST_BFLOAT16)

    return given


@pytest.mark.parametrize("torch_knows", [True, False])
@pytest.mark.parametrize(
    ("flags", "features", "dtype"),
    [
        ("avx2", (), torch.float32),
        (PLAIN, ("AVX-512",), torch.float32),
        (BF16, ("AVX512-BF16", "AVX-512"), torch.bfloat16),
        (f"{PLAIN} amx_bf16", ("AMX", "AVX-512"), torch.bfloat16),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it(
    cpu: Callable[..., None],
    flags: str,
    torch_knows: bool,
    features: tuple[str, ...],
    dtype: torch.dtype,
) -> None:
    cpu(flags, torch_knows)
    assert fast_dtype.cpu_features() == features
    assert fast_dtype.fast_dtype(CPU) == dtype
    assert fast_dtype.fast_dtype(MPS) == torch.float32
    assert fast_dtype.cpu_model() == "Some: CPU"


def test_a_cpu_of_which_nothing_is_known_computes_in_float32(
    cpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu(BF16, False)
    monkeypatch.setattr(fast_dtype, "_CPUINFO", tmp_path / "none")
    assert fast_dtype.cpu_features() == ()
    assert fast_dtype.cpu_model() == ""
    assert fast_dtype.fast_dtype(CPU) == torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16)],
)
def test_a_gpu_computes_in_bfloat16_from_capability_8(
    cpu: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    """A V100 or T4 can emulate bfloat16, which is slow."""
    cpu(BF16, True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fast_dtype.fast_dtype(CUDA) == dtype


@pytest.mark.parametrize("fast", [True, False])
def test_a_dtype_that_was_asked_for_is_used_on_any_device(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(fast_dtype, "has_fast_bfloat16", lambda device: fast)
    for device in (CPU, CUDA, MPS):
        assert (
            base_dtype(ModelSettings(id="x", dtype="float32"), fast_dtype.fast_dtype(device))
            == torch.float32
        )
        assert (
            base_dtype(ModelSettings(id="x", dtype="bfloat16"), fast_dtype.fast_dtype(device))
            == torch.bfloat16
        )
        auto = base_dtype(ModelSettings(id="x", dtype="auto"), fast_dtype.fast_dtype(device))
        assert auto == (torch.bfloat16 if fast else torch.float32)


def test_auto_is_decided_where_a_stage_is_trained_and_identifies_it_everywhere(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*small, "model.dtype=auto", "method=lora", "epochs=1", "data.max_train_rows=16"]
    dtypes, fingerprints = [], set()
    for fast in (True, False):
        cached_base.cache_clear()
        monkeypatch.setattr(fast_dtype, "has_fast_bfloat16", lambda device, fast=fast: fast)
        stage = compose_run(*asked).last
        fingerprints.add(stage.fingerprint)
        dtypes.append(run_stage(stage, Store(tmp_path / str(fast))).result["dtype"])
    cached_base.cache_clear()
    assert dtypes == ["bfloat16", "float32"]
    explicit = compose_run(*asked, "model.dtype=float32").last
    assert len(fingerprints | {explicit.fingerprint}) == 2


def test_a_stage_that_is_resumed_in_another_dtype_says_so(
    compose_run: ComposeRun, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*small, "model.dtype=auto", "method=lora", "epochs=2", "data.max_train_rows=32"]
    stage = compose_run(*asked).last
    calls = iter([False, True])
    cached_base.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(fast_dtype, "has_fast_bfloat16", lambda device: True)
        with pytest.raises(Interrupted):
            run_stage(stage, store, should_stop=lambda: next(calls))
    cached_base.cache_clear()
    assert run_stage(stage, store).result["dtype"] == "bfloat16, then float32"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("dtype", "fits"), [("auto", False), ("bfloat16", False), ("float32", True)]
)
def test_pyrefts_engine_needs_float32_to_be_asked_for_whatever_this_machine_has(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: str, fits: bool
) -> None:
    """Planning may be done on a login node, and training on a GPU, or the other way round."""
    monkeypatch.setattr(fast_dtype, "has_fast_bfloat16", lambda device: fast)
    settings = ReftSettings(rank=2, epochs=1, engine="pyreft")
    target = Target(ModelSettings(id=str(small_model), revision=None, dtype=dtype), 24)
    if fits:
        ReftAdapter.check(settings, target)
    else:
        with pytest.raises(UserError, match=f"model.dtype={dtype}.*use model.dtype=float32"):
            ReftAdapter.check(settings, target)


def test_the_shipped_model_is_computed_in_float32_and_any_other_as_its_device_is_fast_at(
    compose_run: ComposeRun, small_model: Path
) -> None:
    assert compose_run("method=lora").last.model.dtype == "float32"
    assert compose_run("method=lora", f"model.id={small_model}").last.model.dtype == "auto"
