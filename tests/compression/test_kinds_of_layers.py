"""Every kind of layer is compressed rightly, or left alone with its reason in the table."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.ao.nn.quantized import dynamic
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from lightning_sloppy import ConfigurationError, UnsupportedError, compress, restructured
from lightning_sloppy.demo import DigitsDataModule, MLPClassifier

FEW = 6


def rows(count: int = 120, width: int = 20, rank: int = 5) -> torch.Tensor:
    return torch.randn(count, rank) @ torch.randn(rank, width)


class Block(nn.Module):
    """A block of a GPT with separate linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, width = x.shape
        parts = self.attend(self.first(x)).view(count, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(count, length, width))
        return x + self.mlp(self.second(x))


class GPT(nn.Module):
    """A small GPT whose head is its embedding."""

    def __init__(self, tokens: int = 30, width: int = 32, *, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Embedding(16, width)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.head = nn.Linear(width, tokens, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.blocks(x))


def test_a_gpt_with_a_tied_head():
    module, tokens = GPT(), torch.randint(30, (20, 16))
    done = compress(module, [(tokens, tokens)], size=0.6)
    assert {name.rpartition(".")[2] for name in done.structure} >= {"attend", "0"}
    assert done.table["head"].reason.startswith("shares a parameter: embed.weight and head.weight")
    assert done.table["embed"].rank is None
    assert "embedding" in done.table["place"].reason
    assert done.module.head.weight is done.module.embed.weight  # still tied
    assert done.table.fraction <= 0.6
    untied = compress(GPT(tied=False), [(tokens, tokens)], keep=0.5)
    assert "head" in untied.structure
    wanted = done.module.eval()(tokens)
    fresh = restructured(GPT(), done.structure)
    fresh.load_state_dict(done.module.state_dict())
    assert torch.equal(fresh.eval()(tokens), wanted)


@pytest.mark.parametrize("nested", [False, True])
def test_a_transformer_encoder_of_torch_keeps_running_in_eval_mode(nested):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    inputs = torch.randn(40, 7, 32)
    done = compress(module, [(inputs, inputs)], size=0.8)
    assert any(name.endswith("linear1") for name in done.structure)
    assert "nn.MultiheadAttention" in done.table["layers.0.self_attn"].reason
    assert "nn.MultiheadAttention" in done.table["layers.0.self_attn.out_proj"].reason
    padding = torch.zeros(40, 7, dtype=torch.bool)
    padding[:, 5:] = True
    fresh = restructured(nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested), done.structure)
    fresh.load_state_dict(done.module.state_dict())
    for each in (done.module.eval(), fresh.eval()):
        with torch.no_grad():  # where torch would take the fast path
            assert torch.isfinite(each(inputs)).all()
            assert torch.isfinite(each(inputs, src_key_padding_mask=padding)[:, :5]).all()
    full = compress(module, [(inputs, inputs)], keep=0.9999)
    with torch.no_grad():
        assert torch.allclose(full.module.eval()(inputs), module.eval()(inputs), atol=0.05)
    assert module.layers[0].activation_relu_or_gelu == 1  # the module given is as before


def test_shared_and_repeated_layers_stay_one():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(20, 20)
            self.b = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x)))

    module, inputs = Twice(), rows()
    done = compress(module, [inputs], keep=0.9)
    assert len(done.table) == 1
    assert done.module.a is done.module.b
    fresh = restructured(Twice(), done.structure)
    fresh.load_state_dict(done.module.state_dict())
    assert torch.equal(fresh(inputs), done.module(inputs))
    calls = torch.cat([inputs, torch.tanh(module.a(inputs))])  # it saw both
    spread = module.a(calls)
    lost = (done.module.a(calls) - spread).square().sum() / (spread - spread.mean(0)).square().sum()
    assert done.table["a"].variance_kept == pytest.approx(1 - lost.item(), abs=1e-5)


def left_alone() -> dict[str, tuple[nn.Module, str]]:
    pruned = nn.Linear(20, 20)
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.utils.weight_norm(nn.Linear(20, 20))
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(20, 20)), {nn.Linear})[0]
    hooked = nn.Linear(20, 20)
    hooked.register_forward_hook(lambda *_: None)
    more = nn.Linear(20, 20)
    more.register_buffer("count", torch.zeros(1))

    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).abs()

    return {
        "pruned": (pruned, "pruning"),
        "weight_norm": (normed, "weight or spectral norm"),
        "parametrized": (parametrizations.weight_norm(nn.Linear(20, 20)), "parametrized"),
        "orthogonal": (parametrizations.orthogonal(nn.Linear(20, 20)), "parametrized"),
        "quantised": (quantised, "quantised"),
        "hooked": (hooked, "hooks"),
        "more": (more, "more than weight and bias"),
        "own": (Own(20, 20), "no linear or convolution layer of torch"),
        "grouped": (nn.Sequential(nn.Unflatten(1, (20, 1)), nn.Conv1d(20, 20, 1, groups=2), nn.Flatten()), "grouped"),
        "narrow": (nn.Linear(20, 1), "no rank makes it smaller"),
        "recurrent": (nn.Sequential(nn.Unflatten(1, (1, 20)), nn.RNN(20, 20)), "recurrent"),
        "bilinear": (nn.Bilinear(20, 20, 3), "no linear or convolution layer of torch"),
    }


@pytest.mark.parametrize("name", list(left_alone()))
def test_what_is_left_alone_is_named_with_its_reason(name):
    torch.manual_seed(1)
    odd, said = left_alone()[name]

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.plain = odd, nn.Linear(20, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.odd(x, x) if isinstance(self.odd, nn.Bilinear) else self.odd(x)
            return self.plain(x) + (found[0] if isinstance(found, tuple) else found).sum()

    done = compress(Both(), [rows()], keep=0.999)
    assert list(done.structure) == ["plain"]
    (record,) = [each for each in done.table if each.name.startswith("odd") and each.reason]
    assert said in record.reason
    assert record.parameters_before == record.parameters_after
    assert said[:20] in str(done.table)


def test_layers_that_are_not_called_or_whose_weight_is_read():
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.read, self.asked = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20)
            self.plain = nn.Linear(20, 20)
            self.keyword = nn.Linear(20, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.plain(x) + self.keyword(input=x)
            return self.read(functional.linear(x, self.read.weight)) + self.asked(x) / self.asked.out_features

    module = Reading()
    done = compress(module, [rows()], keep=0.99)
    assert set(done.structure) == {"plain", "keyword"}
    assert done.table["unused"].reason == "never called on the batches"
    assert done.table["read"].reason == "forward reads its weight without calling it"
    assert done.table["asked"].reason == "forward reads its out_features without calling it"
    assert {type(each) for each in module.children()} == {nn.Linear}


@pytest.mark.parametrize("target", [{"size": 0.5}, {"keep": 0.9}, {"max_drop": 0.1}])
def test_a_forward_that_asks_for_the_class_of_a_layer_is_refused(target):
    """It would pass the pairs by, and give other outputs without an error. max_drop says so before it evaluates."""

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x) if isinstance(layer, nn.Linear) else x.relu()
            return x

    calls = []

    def evaluate(_: nn.Module) -> float:
        calls.append(1)
        return 1.0

    with pytest.raises(UnsupportedError, match=r"forward of Asking called layer 'layers.0', but not the nn.Sequential"):
        compress(Asking(), [rows()], **target, evaluate=evaluate)
    assert len(calls) <= 2  # the module given, and a candidate of a target that is known


def test_a_pair_that_only_a_later_batch_calls_is_no_mistake():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.sometimes = nn.Linear(20, 20), nn.Linear(20, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.always(x) + (self.sometimes(x) if len(x) > 50 else 0)

    x = rows()
    done = compress(Gated(), [x[:50], x[50:100], x], keep=0.99)
    assert set(done.structure) == {"always", "sometimes"}


def test_a_forward_that_needs_the_layer_itself_is_refused():
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(20, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not isinstance(self.layer, nn.Linear):
                raise TypeError("a linear layer is needed")
            return self.layer(x)

    with pytest.raises(UnsupportedError, match=r"Picky does not run with pairs .*TypeError: a linear layer is needed"):
        compress(Picky(), [rows()], keep=0.99)


def test_a_transposed_convolution_called_with_a_size_is_left_alone():
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(8, 8, 3, stride=2)
            self.plain = nn.Conv1d(8, 16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.plain(self.up(x, output_size=[x.shape[-1] * 2 + 1]))

    done = compress(Sized(), [torch.randn(20, 8, 9)], keep=0.8)
    assert done.table["up"].reason == "called with 2 arguments"
    assert "plain" in done.structure


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_types_are_kept(dtype):
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20)).to(dtype)
    done = compress(module, [rows().to(dtype)], keep=0.999)
    assert {parameter.dtype for parameter in done.module.parameters()} == {dtype}
    assert done.structure["0"] == 5


def test_a_network_in_training_with_batch_norm_and_dropout_is_measured_in_eval_mode():
    module = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Linear(20, 20))
    inputs = rows()
    for _ in range(3):
        module(inputs + 1)
    means = module[1].running_mean.clone()
    done = compress(module, [inputs], keep=1 - 1e-6)
    assert torch.equal(module[1].running_mean, means)
    assert torch.equal(done.module[1].running_mean, means)
    assert done.module.training
    assert torch.allclose(done.module.eval()(inputs), copy.deepcopy(module).eval()(inputs), atol=1e-3)
    assert done.structure == {"0": 5, "3": 5}


class Logging(LightningModule):
    """A module that logs in its forward, as some do."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(width, 30), nn.ReLU(), nn.Linear(30, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log("size", float(len(x)))
        return self.net(x)


def test_a_module_that_logs_and_has_hyperparameters():
    done = compress(Logging(20), [rows()], keep=0.99)
    assert dict(done.module.hparams) == {"width": 20}
    assert "net.0" in done.structure


def test_a_module_that_was_trained_has_no_trainer_in_its_copy(tmp_path):
    module, data = MLPClassifier([64, 32, 10]), DigitsDataModule(64)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    module.network.kept = trainer  # as a part may keep it
    done = compress(module, data.train_dataloader(), keep=0.95)
    assert done.module.network.kept is None
    assert module.trainer is trainer
    with pytest.raises(RuntimeError, match="not attached"):
        _ = done.module.trainer
    pickle.dumps(done.module)
    assert dict(done.module.hparams) == dict(module.hparams)
    before = trainer.validate(done.module, data, verbose=False)  # it is an ordinary module
    assert before[0]["val_accuracy"] > 0.1


def test_non_leaf_tensors_and_open_files_in_attributes(tmp_path):
    class Holding(nn.Linear):
        pass

    module = nn.Sequential(Holding(20, 20))
    module.last = module(rows()).sum()
    assert compress(module, [rows()], keep=0.99).structure == {"0": 5}
    with (tmp_path / "open").open("w") as module.file, pytest.raises(ConfigurationError, match="cannot be copied"):
        compress(module, [rows()], keep=0.99)


def test_dead_outputs_and_constant_inputs():
    module = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    with torch.no_grad():
        module[0].bias.fill_(-1e3)
    done = compress(module, [rows()], keep=0.9)
    assert done.structure["2"] == 1
    assert done.table["2"].effective_rank == 0
    assert torch.allclose(done.module(rows()), module(rows()), atol=1e-5)


def test_export_and_compile():
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 10))
    inputs = torch.randn(30, 3, 8, 8)
    done = compress(module, [inputs], size=0.5)
    wanted = done.module(inputs)
    program = torch.export.export(done.module, (inputs,))
    assert torch.equal(program.module()(inputs), wanted)
    compiled = torch.compile(done.module, backend="eager")
    assert torch.equal(compiled(inputs), wanted)
    assert compress(torch.compile(module, backend="eager"), [inputs], size=0.5).structure == done.structure


def test_structures_of_other_modules_are_refused():
    for structure, said in [({"9": 2}, "has none"), ({"1": 2}, "there is a ReLU"), ({"0": 99}, "not between 1 and 4")]:
        with pytest.raises(ConfigurationError, match=said):
            restructured(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), structure)


class Raising(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(20, 20), error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.layer, nn.Linear):
            raise self.error
        return self.layer(x)


def test_errors_of_the_forward_keep_their_words():
    mine = ConfigurationError("The samples need a date.")
    for error, kind, said in [
        (mine, UnsupportedError, "with pairs in the place of its layers .ConfigurationError: The samples need a date"),
        (torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError, "^no memory$"),  # it is no matter of pairs
        (MemoryError("none"), MemoryError, "^none$"),
    ]:
        with pytest.raises(kind, match=said):
            compress(Raising(error), [rows()], keep=0.99)
        module = Raising(error)
        module.layer = nn.Sequential(nn.Linear(20, 20))  # it fails at once
        with pytest.raises(ConfigurationError if error is mine else kind, match=str(error)):
            compress(module, [rows()], keep=0.99)


def test_dynamic_quantisation_after_compression():
    inputs = rows()
    done = compress(nn.Sequential(nn.Linear(20, 20)), [inputs], keep=0.99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(done.module, {nn.Linear})
    assert isinstance(small[0][0], dynamic.Linear)
