"""Command-line options of the benchmarks. No torch here: `--help` answers at once.

What suits a CPU would not fill a GPU, so some defaults depend on the device; they are None until `fill_in`.
"""

import argparse
from pathlib import Path

SHAPES = {"metavar": "SEQUENCESxTOKENS"}
VARIANTS = {"metavar": "BACKEND:PRECISION[:compiled]"}

ENCODER_DEFAULTS = {
    "cpu": {
        "shapes": ["1x512", "8x512", "1x2048"],
        "variants": ["published:float32", "eager:float32", "sdpa:float32", "sdpa:bfloat16"],
        "directions": ["forward"],
        "repetitions": 5,
        "warmup": 1,
        "seconds": None,
        "memory_shapes": ["1x8192"],
        "memory_variants": ["sdpa:float32", "sdpa:bfloat16"],
    },
    "cuda": {
        "shapes": ["128x512", "32x2048", "1x32768"],
        "variants": [
            f"{backend}:bfloat16" for backend in ("published", "sdpa", "flex_attention", "flash_attention_2", "triton")
        ]
        + ["triton:bfloat16:compiled"],
        "directions": ["forward", "training"],
        "repetitions": 10,
        "warmup": 3,
        "seconds": 10.0,
        "memory_shapes": ["1x65536", "1x131072"],
        "memory_variants": ["triton:bfloat16"],
    },
}

ATTENTION_VARIANTS = [
    *("triton", "triton_exact", "triton_fp32", "triton_no_bias"),
    *("sdpa_flash", "sdpa_cudnn", "flash_varlen"),
    *("sdpa_bias_efficient", "sdpa_bias_cudnn", "flex_alibi", "flash_attn_alibi", "published"),
]
ATTENTION_DEFAULTS = {
    "cpu": {
        "lengths": [512],
        "tokens": 512,
        "dtype": "float32",
        "repetitions": 3,
        "warmup": 1,
        "seconds": None,
    },
    "cuda": {
        "lengths": [512, 1024, 2048, 4096, 8192, 16384, 32768],
        "tokens": 32768,
        "dtype": "bfloat16",
        "repetitions": 15,
        "warmup": 3,
        "seconds": 10.0,
    },
}
KERNELS_DEFAULTS = {
    "cpu": {"lengths": [64], "tokens": 64, "dtype": "float32", "repetitions": 3, "warmup": 0, "seconds": None},
    "cuda": {
        "lengths": [128, 512, 4096, 16384],
        "tokens": 32768,
        "dtype": "bfloat16",
        "repetitions": 15,
        "warmup": 2,
        "seconds": 5.0,
    },
}


def fill_in(options: argparse.Namespace, defaults: dict):
    """Set the options that were not given to what suits the device."""
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, save None: that is said in words, or decided by the device."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def _by_device(defaults: dict, name: str) -> str:
    def shown(value):
        return " ".join(map(str, value)) if isinstance(value, list) else "no limit" if value is None else str(value)

    return f" (default: {shown(defaults['cpu'][name])}; on CUDA {shown(defaults['cuda'][name])})"


def add_encoder_options(parser: argparse.ArgumentParser):
    """Options of `bench encoder`."""

    def add(flag, text, **more):
        by_device = flag.removeprefix("--") in ENCODER_DEFAULTS["cpu"]
        parser.add_argument(flag, help=text + (_by_device(ENCODER_DEFAULTS, flag[2:]) if by_device else ""), **more)

    add("--shapes", "batches to time", nargs="+", **SHAPES)
    add(
        "--variants",
        "what to time; a precision that the device lacks is skipped, and recorded as skipped; compiled: MLPs and "
        "output projections through torch.compile",
        nargs="+",
        **VARIANTS,
    )
    add(
        "--directions",
        "forward, training or both; training is a step of masked-LM: forward, backward and AdamW, half precision as "
        "autocast over float32 weights",
        nargs="+",
        metavar="DIRECTION",
    )
    add("--include_slow", "measure precisions that the device has to emulate too", action="store_true")
    add("--repetitions", "rounds a shape; each runs every variant once", type=int)
    add("--warmup", "unmeasured rounds a shape", type=int)
    add("--seconds", "rounds of a shape end after so many seconds, but there are three at least", type=float)
    add(
        "--memory_shapes",
        "long batches, of which only the peak memory and the time of one pass are measured",
        nargs="*",
        **SHAPES,
    )
    add("--memory_variants", "what to run them with", nargs="*", **VARIANTS)
    add("--device", "cpu, cuda or cuda:N", default="cpu")
    add("--threads", "CPU threads; torch's choice if not given", type=int)
    add("--padding", "share of a batch that is pads, 0 to 1; tokens/s counts the rest", type=float, default=0.0)
    add("--config", "JSON configuration of the network; DNABERT-2-117M's if not given", type=Path)
    add("--seed", "of weights, ids and lengths", type=int, default=0)
    add("--output", "JSON file to write; a table is printed in any case", type=Path)


def add_attention_options(parser: argparse.ArgumentParser):
    """Options of `bench attention`."""

    def add(flag, text, **more):
        by_device = flag.removeprefix("--") in ATTENTION_DEFAULTS["cpu"]
        parser.add_argument(flag, help=text + (_by_device(ATTENTION_DEFAULTS, flag[2:]) if by_device else ""), **more)

    add("--device", "cpu, cuda or cuda:N (default: cuda if there is one)")
    add("--lengths", "tokens of a sequence", nargs="+", type=int)
    add("--tokens", "tokens of a batch; it holds tokens / length sequences, at least one", type=int)
    add("--layouts", "equal: all of one length; mixed: from half of it up", nargs="+", default=["equal", "mixed"])
    add(
        "--directions",
        "forward, backward, or both in one",
        nargs="+",
        default=["forward", "backward", "both"],
        metavar="DIRECTION",
    )
    add("--variants", "what to time", nargs="+", default=ATTENTION_VARIANTS, metavar="VARIANT")
    add("--heads", "attention heads", type=int, default=12)
    add("--head_dim", "dimensions of a head", type=int, default=64)
    add("--dtype", "float32, bfloat16 or float16")
    add(
        "--score_std",
        "standard deviation of the scores q.k / sqrt(head_dim) of random inputs; the norms of q and k decide how much "
        "can be skipped",
        type=float,
        default=1.0,
    )
    add("--model", "take q, k and v from every layer of this checkpoint instead of drawing them")
    add("--input", "FASTA file, or table with sequence and label, to run the checkpoint on", type=Path)
    add("--repetitions", "rounds; each runs every variant once", type=int)
    add("--warmup", "unmeasured rounds", type=int)
    add("--seconds", "rounds of a length end after so many seconds, but there are three at least", type=float)
    add("--seed", "of inputs and lengths", type=int, default=0)
    add("--output", "JSON file to write; tables are printed in any case", type=Path)


def add_kernels_options(parser: argparse.ArgumentParser):
    """Options of `bench kernels`."""

    def add(flag, text, **more):
        by_device = flag.removeprefix("--") in KERNELS_DEFAULTS["cpu"]
        parser.add_argument(flag, help=text + (_by_device(KERNELS_DEFAULTS, flag[2:]) if by_device else ""), **more)

    add("--device", "cpu, cuda or cuda:N (default: cuda if there is one)")
    add(
        "--kernels",
        "those whose blocks to try; a length takes either the two halves of the backward pass or the one block",
        nargs="+",
        default=["forward", "query_gradient", "key_gradient", "block_gradient"],
        metavar="KERNEL",
    )
    add("--lengths", "tokens of a sequence", nargs="+", type=int)
    add("--tokens", "tokens of a batch; it holds tokens / length sequences, at least one", type=int)
    add("--heads", "attention heads", type=int, default=12)
    add("--head_dim", "dimensions of a head", type=int, default=64)
    add("--dtype", "float32, bfloat16 or float16")
    add("--repetitions", "rounds; each runs every candidate once", type=int)
    add("--warmup", "unmeasured rounds", type=int)
    add("--seconds", "rounds of a kernel end after so many seconds, but there are three at least", type=float)
    add("--seed", "of the inputs", type=int, default=0)
    add("--output", "JSON file to write; tables are printed in any case", type=Path)


def add_bits_options(parser: argparse.ArgumentParser):
    """Options of `bench bits`."""
    add = parser.add_argument
    add("--model", required=True, help="masked language model: a folder or Hub id")
    add("--corpus", required=True, help="folder of build-corpus, or a Hub dataset like it, with validation rows")
    add("--sequences", type=int, default=256, help="held-out windows of each group")
    add("--order", type=int, default=10, help="highest order of the Markov models, in bases")
    add("--mlm_probability", type=float, default=0.15, help="share of tokens to mask")
    add("--precision", default="float32", help="float32, bfloat16, float16, or auto: what is fast on the device")
    add("--batch_size", type=int, default=64, help="windows of one forward pass")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--output", type=Path, help="JSON file to write; a table is printed in any case")


def add_demo_options(parser: argparse.ArgumentParser):
    """Options of `bench demo`."""
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="runs of each, with the seeds 42, 43, ...")
    add("--epochs", type=float, help="passes over the training table; by default the recipe's")
    add("--output", type=Path, help="JSON file to write; a table is printed in any case")


def add_vocab_options(parser: argparse.ArgumentParser):
    """Options of `bench vocab`."""
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="FASTA files (also .gz) or folders of them")
    add("--groups", help="tab-separated table that names each file's group; without it, its folder")
    add("--group_column", default="group", help="column of --groups that holds the group")
    add("--sizes", nargs="+", type=int, default=[2**n for n in range(8, 16)], help="entries of the byte pairs")
    add("--kmers", nargs="+", type=int, default=[3, 4, 5, 6], help="k of the k-mers, 3 to 6")
    add(
        "--max_bases",
        type=float,
        default=30e6,
        help="bases to train byte pairs on, about, spread evenly over groups; 100 bytes of memory each",
    )
    add("--eval_bases", type=float, default=3e6, help="bases to measure on, about, which do not train")
    add("--window", type=int, default=1000, help="bases of a text; DNA is trained and measured on in such windows")
    add("--shift_windows", type=int, default=1000, help="windows to edit, at most")
    add("--masking", type=float, default=0.15, help="share of the tokens masked, 0 to 1")
    add("--seed", type=int, default=0, help="of the draw of windows, masks and edits")
    add("--output", type=Path, help="JSON file to write, and a PNG beside it; a table is printed in any case")


def add_length_options(parser: argparse.ArgumentParser):
    """Options of `bench length`."""

    def add(flag, text, **more):
        parser.add_argument(flag, help=text, **more)

    add("--model", "folders of pretrain, or Hub ids; all with one tokenizer", nargs="+", required=True)
    add("--corpus", "folder of build-corpus, or a Hub dataset like it: its held-out records are read again")
    add(
        "--input",
        "where the corpus's FASTA files are now, if not where they were; without --corpus: files or folders that no "
        "model saw, each species a group",
        nargs="+",
    )
    add(
        "--lengths",
        "tokens of a sequence with [CLS] and [SEP]; the smallest is what the others are compared with",
        nargs="+",
        type=int,
        default=[128, 256, 512, 1024, 2048, 4096, 8192],
    )
    add("--stretches", "stretches of each group at most, each as long as the greatest length", type=int, default=8)
    add("--mlm_probability", "share of the tokens to predict", type=float, default=0.15)
    add("--batch_tokens", "tokens of a forward pass, or one sequence if that is longer", type=int, default=16384)
    add("--device", "cpu, cuda or cuda:N", default="cpu")
    add("--dtype", "precision of the models: float32, bfloat16, float16, or auto", default="float32")
    add("--seed", "of the choice of stretches and of the masks", type=int, default=0)
    add("--output", "JSON file to write, and a plot of its name beside it; a table is printed in any case", type=Path)


def add_embed_options(parser: argparse.ArgumentParser):
    """Options of `bench embed`."""
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="sequences, or BED with --fasta; their lengths are what is measured")
    add("--fasta", help="the genome that BED files refer to")
    add("--sequences", type=int, default=128, help="how many, spread evenly over the input")
    add("--model", help="checkpoint; by default the published size with random weights")
    add("--dtypes", nargs="+", default=["float32", "bfloat16"], help="precisions of our ways")
    add("--batch_size", type=int, default=32, help="sequences of a batch of the published way")
    add("--window", type=int, default=512, help="tokens of a window")
    add("--overlap", type=int, default=64, help="tokens that windows share")
    add("--repetitions", type=int, default=3, help="rounds; each runs every way once")
    add("--warmup", type=int, default=0, help="unmeasured rounds; vectors are compared before in any case")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--output", type=Path, help="JSON file to write; a table is printed in any case")


def add_brca1_options(parser: argparse.ArgumentParser):
    """Options of `bench brca1`."""
    add = parser.add_argument
    add("--model", default="mini", help="pretrained checkpoint")
    add("--variants", type=Path, required=True, help="the experiment's table, tab-separated, with hg19 positions")
    add("--fasta", required=True, help="hg19, or its part around BRCA1")
    add("--scores", nargs="+", default=["llr", "pseudo_likelihood", "embedding"], help="of score-variants")
    add("--context", type=int, default=300, help="bases on either side")
    add("--limit", type=int, help="variants, about, spread evenly over the table; all if not given")
    add("--resamples", type=int, default=1000, help="of the bootstrap over positions")
    add("--dtype", default="float32", help="precision of the model")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--output", type=Path, help="JSON file to write; a table is printed in any case")
