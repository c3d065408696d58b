"""The GPUs that a dry run knows, and its settings, which both launchers have."""

from dataclasses import dataclass
from typing import Any

from heft_pipeline.declare_settings import setting


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do at best.

    Attributes:
        tflops: TFLOP/s of dense matrix products in bfloat16 (float16 where there is no bfloat16)
            with sums in float32.
        memory_gib: Its memory as it is sold, which is about what can be used in GiB.
        bfloat16: Whether it computes in bfloat16.
    """

    tflops: float
    memory_gib: int
    bfloat16: bool = True


#: Datasheets of NVIDIA with a footnote "with sparsity" have twice the dense rate.
GPUS = {
    "v100-16g": Gpu(125, 16, bfloat16=False),  # NVIDIA V100 datasheet, SXM2, float16
    "v100-32g": Gpu(125, 32, bfloat16=False),  # the same
    "t4": Gpu(65, 16, bfloat16=False),  # NVIDIA T4 datasheet, float16
    "a10": Gpu(125, 24),  # NVIDIA A10 datasheet
    "a6000": Gpu(154.8, 48),  # NVIDIA RTX A6000 datasheet: 309.7 with sparsity
    "rtx3090": Gpu(71, 24),  # NVIDIA GA102 whitepaper, table 9
    "a100-40g": Gpu(312, 40),  # NVIDIA A100 datasheet
    "a100-80g": Gpu(312, 80),  # the same
    "l4": Gpu(121, 24),  # NVIDIA L4 datasheet: 242 with sparsity
    "l40s": Gpu(362, 48),  # NVIDIA L40S datasheet: 362.05
    "rtx4090": Gpu(165.2, 24),  # NVIDIA Ada whitepaper, appendix A
    "h100": Gpu(989, 80),  # NVIDIA H100 datasheet, SXM: 1,979 with sparsity
    "h100-pcie": Gpu(756, 80),  # NVIDIA H100 PCIe product brief: 1,513 with sparsity
    "h200": Gpu(989, 141),  # NVIDIA H200 datasheet, SXM: 1,979 with sparsity
    "b200": Gpu(2250, 180),  # NVIDIA HGX B200 datasheet: 36,000 with sparsity for eight
    "mi250x": Gpu(191.5, 64),  # AMD Instinct MI250X datasheet, one of its two dies
    "mi300x": Gpu(1307.4, 192),  # AMD Instinct MI300X datasheet
}
#: The value of ``dry_run_gpu`` for a dry run that reads neither model nor data.
NONE = "none"


def gpu_setting() -> Any:
    """Declare ``dry_run_gpu``."""
    return setting(
        "h100",
        "the GPU that a dry run says the cost on; none: say no cost, which is quicker",
        choices=(*GPUS, NONE),
        identity=False,
    )


def utilisation_setting() -> Any:
    """Declare ``dry_run_utilisation``.

    The word is that of Chowdhery et al. 2022 (arXiv 2204.02311, section 4.1): the share of the
    peak that is left when the operations are divided by the time.
    """
    return setting(
        0.4,
        "the share of that GPU's peak in bfloat16 that stages are assumed to reach",
        above=0,
        most=1,
        identity=False,
    )
