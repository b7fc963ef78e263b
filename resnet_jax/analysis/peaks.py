"""What accelerators can compute at most, from their makers' data sheets. Imports no JAX."""

# {JAX's name of a device: (bfloat16, float32 by default, float32 in full)}, dense TFLOP/s; None: not published.
# By default JAX computes float32 products in TF32 on NVIDIA's GPUs and in bfloat16 passes on TPUs.
# NVIDIA: data sheets of A100, H100, H200 (their figures "with sparsity" halved). TPU: jax-ml.github.io/scaling-book/tpus
# and cloud.google.com/tpu/docs (per chip; TPU v3 shows each of a chip's two cores as a device).
PEAK_TFLOPS = {
    "NVIDIA H200": (989, 494, 67),
    "NVIDIA H100 80GB HBM3": (989, 494, 67),
    "NVIDIA H100 PCIe": (756, 378, 51),
    "NVIDIA A100-SXM4-80GB": (312, 156, 19.5),
    "NVIDIA A100-SXM4-40GB": (312, 156, 19.5),
    "NVIDIA A100 80GB PCIe": (312, 156, 19.5),
    "TPU v3": (61.5, 61.5, None),
    "TPU v4": (275, 275, None),
    "TPU v5 lite": (197, 197, None),
    "TPU v5e": (197, 197, None),
    "TPU v5": (459, 459, None),
    "TPU v5p": (459, 459, None),
    "TPU v6 lite": (918, 918, None),
    "TPU v6e": (918, 918, None),
}


def peak_flops(device_kind: str, dtype: str, matmul_precision: str = "default") -> float | None:
    """FLOP/s of one device at most, a multiply-add counted as two; None where that is not known.

    Args:
      device_kind: `jax.Device.device_kind`.
      dtype: of the activations, 'bfloat16' or 'float32'.
      matmul_precision: of the config, which matters in float32.
    """
    if device_kind not in PEAK_TFLOPS:
        return None
    column = 0 if dtype == "bfloat16" else {"default": 1, "highest": 2}.get(matmul_precision)
    tflops = None if column is None else PEAK_TFLOPS[device_kind][column]
    return None if tflops is None else 1e12 * tflops
