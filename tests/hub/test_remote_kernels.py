"""The Triton kernels as a Hub folder carries them: they run there, and nobody needs Triton to load the model."""

import os
import subprocess
import sys

import pytest
import torch

STRANGER = """
import sys
folder, has_triton = sys.argv[1:]
if has_triton == "no":
    sys.modules["triton"] = None  # importing it raises, and finding it gives nothing
import torch, transformers
model, info = transformers.AutoModelForMaskedLM.from_pretrained(
    folder, trust_remote_code=True, attn_implementation="triton", output_loading_info=True)
assert not any(info.values()), info
device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device).eval()
inputs = {"input_ids": torch.arange(5, 19, device=device).view(2, 7), "labels": torch.full((2, 7), 6, device=device)}
gradients = []
for backend in ("triton", "sdpa"):
    model.set_attn_implementation(backend)
    model.zero_grad()
    model(**inputs).loss.backward()
    gradients.append(model.get_input_embeddings().weight.grad.clone())
torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
ran = [name.split(".")[-1] for name in sys.modules if name.startswith("transformers_modules.")]
assert ("flash_alibi" in ran) == (has_triton == "yes"), ran
"""


@pytest.mark.parametrize("has_triton", ["yes", "no"])
def test_a_stranger_attends_with_triton(has_triton, kernels, exported, tmp_path):
    environment = dict(os.environ) | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", STRANGER, str(exported), has_triton]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert ("Triton is not installed" in done.stderr) == (has_triton == "no"), done.stderr[-4000:]


def test_two_copies_of_the_code_keep_their_own_operators(kernels, exported):
    """The package and Hub folders live in one process: neither may replace the other's registered operators."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from dnabert2.bert_layers import flash_alibi

    remote = get_class_from_dynamic_module("flash_alibi.Plan", str(exported))
    module = sys.modules[remote.__module__]
    assert module is not flash_alibi and module._forward_op._qualname != flash_alibi._forward_op._qualname
    q = torch.randn((5, 1, 16), device="cuda" if torch.cuda.is_available() else "cpu")
    arguments = (q, q, q, torch.ones(1, device=q.device), torch.tensor([0, 5], dtype=torch.int32, device=q.device), 5)
    assert torch.equal(module.alibi_attention(*arguments), flash_alibi.alibi_attention(*arguments))
