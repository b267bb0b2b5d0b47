"""Compiles Triton kernels for GPUs that are not there, and says what the compiled code needs.

    TRITON_INTERPRET=0 python tests/bert_layers/ahead_of_time.py < variants.json > results.jsonl

`variants.json` is a list of objects with the fields of `Variant`; the results come one a line, in that order, with the
fields of `Compiled`, or with an `error`. A process of its own because the tests run the same kernels interpreted.
"""

import json
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

# The type of a kernel's parameter; those that are not here are int32 numbers.
FLOATS = ("p_lse", "p_delta", "p_slopes", "p_reach", "p_floor", "p_peak")
INTEGERS = ("p_order", "p_tiles", "p_spans", "p_transposed")
NUMBERS = ("scale", "slack", "budget", "least")
# Of these numbers nothing is known; the strides of usual models are multiples of 16, and Triton is told so.
ANY_SIZE = ("rows", "num_slots")

TENSOR_CORES = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"mma\.sync",
    "mfma": r"v_mfma",
}


class Variant(NamedTuple):
    """
    A kernel as one launch compiles it.

    Attributes:
        kernel: its name without "_kernel".
        target: "sm_90", "gfx942" and the like.
        dtype: of q, k and v, as Triton calls it.
        constants: the kernel's constexpr arguments.
        num_warps, num_stages: None for Triton's own choice.
    """

    kernel: str
    target: str
    dtype: str
    constants: dict
    num_warps: int | None = None
    num_stages: int | None = None


class Compiled(NamedTuple):
    """
    Attributes:
        shared: bytes of shared memory a program takes.
        spilled: bytes a thread keeps in local memory for want of registers.
        registers: of a thread.
        tensor_cores: kinds of tensor-core instructions that occur, keys of TENSOR_CORES.
    """

    shared: int
    spilled: int
    registers: int
    tensor_cores: list[str]


def compile_variant(variant: Variant) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dnabert2.bert_layers import alibi_kernels, span_kernels

    name = f"{variant.kernel}_kernel"
    kernel = getattr(alibi_kernels, name, None) or getattr(span_kernels, name)
    signature = {}
    for parameter in kernel.arg_names:
        if parameter in variant.constants:
            signature[parameter] = "constexpr"
        elif parameter in FLOATS:
            signature[parameter] = "*fp32"
        elif parameter in INTEGERS:
            signature[parameter] = "*i32"
        elif parameter == "p_mask":
            signature[parameter] = "*i1" if variant.constants["HAS_MASK"] else "*i32"
        elif parameter.startswith("p_"):
            signature[parameter] = "*" + variant.dtype
        else:
            signature[parameter] = "fp32" if parameter in NUMBERS else "i32"
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (parameter, kind) in enumerate(signature.items())
        if kind.startswith("*") or (kind == "i32" and parameter not in ANY_SIZE)
    }
    amd = variant.target.startswith("gfx")
    target = GPUTarget("hip", variant.target, 64) if amd else GPUTarget("cuda", int(variant.target[3:]), 32)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    source = ASTSource(fn=kernel, signature=signature, constexprs=variant.constants, attrs=aligned)
    compiled = triton.compile(source, target=target, options={k: v for k, v in options.items() if v is not None})
    spilled, registers = _amd_usage(compiled.asm["amdgcn"]) if amd else _nvidia_usage(triton, compiled.asm["cubin"])
    text = compiled.asm["amdgcn" if amd else "ptx"]
    found = [kind for kind, pattern in TENSOR_CORES.items() if re.search(pattern, text)]
    return Compiled(compiled.metadata.shared, spilled, registers, found)


def _amd_usage(assembly: str) -> tuple[int, int]:
    """A spilled scalar register goes to a lane of a vector register, not to memory, and does not count."""

    def figure(name):
        return int(re.search(rf"^\s*\.{name}:\s*(\d+)", assembly, re.MULTILINE)[1])

    return figure("vgpr_spill_count") + figure("private_segment_fixed_size"), figure("vgpr_count")


def _nvidia_usage(triton, cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", output.stdout + output.stderr)
    registers, stack, local = map(int, usage.groups())
    return stack + local, registers


def main():
    warnings.simplefilter("ignore")
    for fields in json.load(sys.stdin):
        try:
            result = compile_variant(Variant(**fields))._asdict()
        except Exception as error:  # a compiler raises what it likes; the test reports it
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
