"""torch.compile, torch.export and torch.jit.trace give what the model gives, in one graph and for padded batches."""

import pytest
import torch

from dnabert2 import (
    DNABert2ForMaskedLM,
    DNABert2ForSequenceClassification,
    DNABert2ForTokenClassification,
    DNABert2Model,
)

CLASSES = (DNABert2Model, DNABert2ForMaskedLM, DNABert2ForSequenceClassification, DNABert2ForTokenClassification)
CASES = [
    *((model_class, "sdpa") for model_class in CLASSES),
    (DNABert2ForSequenceClassification, "eager"),
    (DNABert2ForMaskedLM, "triton"),
]


@pytest.fixture(autouse=True)
def fresh_dynamo(request):
    """Compiled code is kept a process, up to a limit of recompilations a function."""
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "triton":
        request.getfixturevalue("kernels")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def close(actual, expected):
    assert type(actual) is type(expected) and list(actual) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-5, atol=1e-5)


def gradients_of(model):
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return gradients


@pytest.mark.parametrize(("model_class", "backend"), CASES)
def test_compile_in_one_graph(model_class, backend, build, batch):
    """Values and gradients; "aot_eager" traces forward and backward but generates no code."""
    model = build(model_class, backend, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = batch("mixed")
    if model_class is DNABert2ForSequenceClassification:
        inputs["labels"] = torch.tensor([0, 1, 0])
    elif model_class is not DNABert2Model:
        inputs["labels"] = (inputs["input_ids"] % 2).masked_fill(inputs["attention_mask"] == 0, -100)
    outputs, gradients = [], []
    for function in (model, compiled):
        output = function(**inputs)
        (output[0].square().sum() + (output.pooler_output.sum() if "pooler_output" in output else 0)).backward()
        outputs.append(output)
        gradients.append(gradients_of(model))
    close(outputs[1], outputs[0])
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 14
    for name, expected in gradients[0].items():
        scale = expected.abs().max().clamp(min=1e-2)
        assert (gradients[1][name] - expected).abs().max() / scale < 2e-5, name


def test_compile_once_for_every_shape(build, batch):
    """A model that compiled anew for each length would run into PyTorch's limit of eight."""
    model = build(DNABert2Model, "sdpa", num_hidden_layers=1)
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=count, dynamic=True)
    with torch.no_grad():
        for kind, length in (("mixed", 12), ("holes", 17), ("none", 130), ("all_pad_row", 5)):
            close(compiled(**batch(kind, length)), model(**batch(kind, length)))
        assert len(graphs) == 1
        ids = batch("mixed")["input_ids"]
        close(compiled(ids), model(ids))  # the mask derived inside the graph


@pytest.mark.parametrize(("model_class", "backend"), CASES)
def test_export_with_dynamic_shapes(model_class, backend, build, batch):
    model = build(model_class, backend, num_hidden_layers=1)
    shape = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=1024)}
    inputs = batch("mixed")
    program = torch.export.export(
        model, (), kwargs=inputs, strict=False, dynamic_shapes=dict.fromkeys(inputs, shape)
    ).module()
    for kind, length, rows in (("mixed", 12, 3), ("none", 33, 2), ("holes", 5, 3), ("all_pad_row", 130, 3)):
        other = {key: value[:rows] for key, value in batch(kind, length).items()}
        with torch.no_grad():
            actual, expected = program(**other), model(**other)
        for key, value in expected.items():
            torch.testing.assert_close(actual[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model_class", "backend"), CASES)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.*is deprecated:DeprecationWarning")
def test_trace(model_class, backend, build, batch):
    model = build(model_class, backend)
    model.config.return_dict = False
    arguments = tuple(batch("mixed").values())
    with torch.no_grad():
        traced = torch.jit.trace(model, arguments)
        for kind, length, rows in (("mixed", 12, 3), ("left", 12, 2), ("holes", 7, 3), ("none", 33, 1)):
            other = tuple(value[:rows] for value in batch(kind, length).values())
            for actual, expected in zip(traced(*other), model(*other), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
