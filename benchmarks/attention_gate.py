"""Before attention is timed: every variant that claims to compute ALiBi does, in values and in gradients.

The reference is `alibi_attention_reference` in float64. What error is allowed follows from the precision, and is not a
number of ours: at most `TIMES` the error that the same maths, written out in PyTorch in the same precision, makes on
the same inputs. For variants that round their bias to the precision of q, that is the published code's maths.
"""

import torch

from ..bert_layers.alibi import alibi_attention_reference
from .measure import GateError, describe, relative_error
from .problems import Problem, random_problem
from .published import published_attention
from .rivals import Rival

TIMES = 2
# Half a dozen tiles on a GPU, odd lengths among them. An interpreted kernel gets by with less.
GATE_LENGTHS = {
    "cuda": {"mixed": [1, 63, 300, 1100], "equal": [600, 600]},
    "cpu": {"mixed": [1, 17, 280], "equal": [48, 48]},
}
# The first head's slope here, steeper than any of ALiBi's, so that something is left out even in short sequences.
STEEP = 1.0
TENSORS = ("output", "dq", "dk", "dv")


def check_attention(
    rivals: list[Rival],
    *,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    with_gradients: bool,
) -> list[dict]:
    """
    Compare with the reference what of `rivals` computes ALiBi and can run.

    Returns:
        One record a variant and batch: `variant`, `batch`, `status` ("passed" or "failed"), `reason`, and of each of
        output, dq, dk and dv `relative_error` (Frobenius norm) and `bound`. `skip="exact"` has `equal_to_dense` too.
        Another's variant that fails is for the caller to leave untimed.

    Raises:
        GateError: if one of ours fails, or skips with other bits in mode "exact" than without.
    """
    records = []
    for batch, lengths in GATE_LENGTHS[device.type].items():
        problem = random_problem(
            batch, max(lengths), lengths, heads=heads, head_dim=head_dim, dtype=dtype, device=device, seed=seed
        )
        problem.slopes[0] = STEEP
        able = [x for x in rivals if x.alibi and x.reason_to_skip(batch, device, dtype) is None]
        records += _check_batch(able, batch, problem, with_gradients)
    failed = [f"{x['variant']} on the {x['batch']} batch ({x['reason']})" for x in records if _is_fatal(x, rivals)]
    if failed:
        raise GateError(f"nothing was timed, for these do not agree with the reference: {'; '.join(failed)}.")
    return records


def failures(records: list[dict]) -> dict[str, str]:
    """Variants that failed, and why."""
    return {x["variant"]: f"failed the correctness gate: {x['reason']}" for x in records if x["status"] == "failed"}


def _is_fatal(record: dict, rivals: list[Rival]) -> bool:
    return record["status"] == "failed" and any(x.ours for x in rivals if x.name == record["variant"])


def _check_batch(rivals: list[Rival], batch: str, problem: Problem, with_gradients: bool) -> list[dict]:
    layout = problem.new_layout()

    def reference(q, k, v):
        return alibi_attention_reference(q, k, v, problem.slopes.to(q.dtype), layout.cu_seqlens, layout.max_seqlen)

    def same_maths(q, k, v):
        return alibi_attention_reference(q, k, v, problem.slopes, layout.cu_seqlens, layout.max_seqlen)

    def rounded_maths(q, k, v):
        return published_attention(q, k, v, problem.slopes, layout)[0]

    leaves = [x.detach() for x in problem.qkv.unbind(1)]
    expected = _results(reference, [x.double() for x in leaves], problem.gradient.double(), with_gradients)
    smallest = torch.finfo(torch.float32).eps  # in float32 PyTorch itself may be exact to the last bit
    bounds = {
        rounded: {
            name: TIMES * relative_error(found, expected[name]) + smallest
            for name, found in _results(maths, leaves, problem.gradient, with_gradients).items()
        }
        for rounded, maths in ((False, same_maths), (True, rounded_maths))
    }
    records, dense = [], None
    for rival in rivals:
        record = {"variant": rival.name, "batch": batch, "status": "passed", "reason": None}
        records.append(record)
        try:
            found = _results_of(rival, problem, with_gradients)
        except Exception as error:
            if rival.ours:  # a defect, not a disagreement
                raise
            record |= {"status": "failed", "reason": describe(error)}
            continue
        errors = {name: relative_error(x, expected[name]) for name, x in found.items()}
        record |= {"relative_error": errors, "bound": bounds[rival.rounded_bias]}
        # A NaN is not below any bound.
        wrong = [name for name in errors if not errors[name] <= record["bound"][name]]
        if rival.ours and rival.skip is None:
            dense = found
        if rival.skip == "exact":
            record["equal_to_dense"] = dense and {name: torch.equal(found[name], dense[name]) for name in found}
            if dense and not record["equal_to_dense"]["output"]:
                record |= {"status": "failed", "reason": "the output has other bits than without skipping"}
        if wrong:
            record |= {
                "status": "failed",
                "reason": ", ".join(
                    f"{name} has a relative error of {errors[name]:.1e}, bound {record['bound'][name]:.1e}"
                    for name in wrong
                ),
            }
    return records


def _results_of(rival: Rival, problem: Problem, with_gradients: bool) -> dict[str, torch.Tensor]:
    attend = rival.bind(problem)
    native = rival.inputs(problem, with_gradients=False)
    gradient = rival.native(problem.gradient, problem)
    return {name: rival.packed(x) for name, x in _results(attend, native, gradient, with_gradients).items()}


def _results(attend, leaves, gradient, with_gradients: bool) -> dict[str, torch.Tensor]:
    leaves = [x.detach().requires_grad_(with_gradients) for x in leaves]
    with torch.set_grad_enabled(with_gradients):
        output = attend(*leaves)
    gradients = torch.autograd.grad(output, leaves, gradient) if with_gradients else ()
    return dict(zip(TENSORS, (output.detach(), *gradients), strict=False))
