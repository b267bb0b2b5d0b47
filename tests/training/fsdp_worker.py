"""Started twice by `test_pretrain_parallel.py`: pretrain with FSDP on CPUs, where accelerate does not offer it."""

import sys

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from dnabert2.processes import leave
from dnabert2.training import pretrain
from dnabert2.training.pretrainer import Pretrainer


class ShardedPretrainer(Pretrainer):
    """The very same, after telling accelerate what it would have been told on GPUs."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        for shared in (PartialState._shared_state, AcceleratorState._shared_state):
            shared["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        self.is_fsdp_enabled = True

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        kinds = {type(parameter.data).__name__ for parameter in self.model_wrapped.parameters()}
        # One write: two processes share the pipe, and print writes each of its arguments by itself.
        sys.stdout.write(f"parameters are {' '.join(sorted(kinds))}\n")
        return output


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretrain.Pretrainer, pretrain.refuse_sharding_on_cpu = ShardedPretrainer, lambda args: None
    leave(pretrain.main())
