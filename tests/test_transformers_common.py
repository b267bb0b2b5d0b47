"""transformers' own common model tests, run on our four classes.

They are not part of its wheel but of its source package, which `make env` unpacks into the environment
(`transformers-tests`; or `DNABERT2_TRANSFORMERS_TESTS`). Without it, offline say, this file is skipped. Two of their
neighbours are in neither package and are replaced by empty mixins: generation, which we do not do, and a matrix of
exporters, for which there is test_export_program.py.
"""

import importlib
import os
import sys
import types
import unittest
from pathlib import Path

import pytest

from dnabert2 import (
    DNABert2Config,
    DNABert2ForMaskedLM,
    DNABert2ForSequenceClassification,
    DNABert2ForTokenClassification,
    DNABert2Model,
    register_auto_classes,
)

FOLDER = Path(os.environ.get("DNABERT2_TRANSFORMERS_TESTS", Path(sys.prefix) / "transformers-tests"))

if not (FOLDER / "test_modeling_common.py").is_file():
    pytest.skip(f"transformers' source package is not unpacked in {FOLDER}", allow_module_level=True)


def load_common_tests():
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(FOLDER)]
    sys.modules["transformers_tests"] = package
    for name, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        parent = f"transformers_tests.{name.split('.')[0]}"
        sys.modules.setdefault(parent, types.ModuleType(parent)).__path__ = []
        module = types.ModuleType(f"transformers_tests.{name}")
        setattr(module, mixin, type(mixin, (), {}))
        sys.modules[module.__name__] = module
    return importlib.import_module("transformers_tests.test_modeling_common")


common = load_common_tests()
register_auto_classes()
# The common tests look classes up by name to know which labels they take.
common.MODEL_MAPPING_NAMES["dnabert2"] = "DNABert2Model"
common.MODEL_FOR_MASKED_LM_MAPPING_NAMES["dnabert2"] = "DNABert2ForMaskedLM"
common.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["dnabert2"] = "DNABert2ForSequenceClassification"
common.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["dnabert2"] = "DNABert2ForTokenClassification"


class DNABert2ModelTester:
    """What transformers calls a model tester: a small configuration and inputs for it."""

    batch_size, seq_length, vocab_size = 13, 7, 99
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = 32, 2, 4, 37
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return DNABert2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            type_vocab_size=16,
        )

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        # Ids from 5 on: the common tests draw ids at random, and here a pad id without a mask means a pad.
        inputs = {
            "input_ids": common.ids_tensor(shape, self.vocab_size - 5) + 5,
            "token_type_ids": common.ids_tensor(shape, 16),
            "attention_mask": common.random_attention_mask(shape),
        }
        return self.get_config(), inputs


class DNABert2CommonTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        DNABert2Model,
        DNABert2ForMaskedLM,
        DNABert2ForSequenceClassification,
        DNABert2ForTokenClassification,
    )
    test_can_init_all_missing_weights_before_2023 = True
    # Head masks and pruning are transformers 4 only; transformers 5 removed both.
    test_head_masking = test_pruning = False

    def setUp(self):
        self.model_tester = DNABert2ModelTester(self)


del common.ModelTesterMixin  # or pytest would collect it here as well
