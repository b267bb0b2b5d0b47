"""Started twice by `test_triton_backend.py`, through torchrun: saves the gradients that DDP leaves in process 0."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
from dnabert2.processes import leave


def main():
    config_file, inputs_file, output_file = sys.argv[1:]
    on_gpu = torch.cuda.device_count() > 1
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DNABert2ForMaskedLM._from_config(DNABert2Config.from_json_file(config_file), attn_implementation="triton")
    if on_gpu:
        torch.cuda.set_device(rank)
        model = model.cuda()
    inputs = torch.load(inputs_file)[rank].to("cuda" if on_gpu else "cpu")
    parallel = DistributedDataParallel(model)  # kept: its hooks go with it
    parallel(input_ids=inputs, labels=inputs).loss.backward()
    if rank == 0:
        torch.save({name: parameter.grad.cpu() for name, parameter in model.named_parameters()}, output_file)
    dist.barrier()
    leave(0)


if __name__ == "__main__":
    main()
