"""The reference decoder against cases small enough to compute by hand, and then against
transformers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from conformance.oracle import BFLOAT16, FLOAT64, Architecture, Decoder, Place
from conformance.oracle.architecture import LinearScaling, Llama3Scaling, Names, Norm, Rotary

IDENTITY = torch.eye(2, dtype=torch.float64)
ARCHITECTURE = Architecture(
    hidden=2,
    layers=1,
    heads=1,
    key_value_heads=1,
    head_dimension=2,
    positions=16,
    rotary=Rotary(theta=10_000.0, dimensions=2),
    norm=Norm("rms", eps=0.0),
    activation="silu",
    windows=(None,),
    attention_scale=1 / math.sqrt(2),
)
ATTENTION = "model.layers.0.self_attn"


def float64(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def attention_weights(**projections: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), IDENTITY) | projections
    return {f"{ATTENTION}.{name}.weight": weight for name, weight in named.items()}


def still(count: int) -> Place:
    """Tokens that all stand at position 0, where nothing is rotated."""
    return Place.of(torch.ones(1, count), torch.zeros(1, count))


class TestNorms:
    @pytest.mark.parametrize(
        ("eps", "expected"), [(0.0, (3 / math.sqrt(12.5), 4 / math.sqrt(12.5))), (12.5, (0.6, 0.8))]
    )
    def test_rms(self, eps: float, expected: tuple[float, float]) -> None:
        # (9 + 16) / 2 = 12.5; with an epsilon of 12.5 the root is 5.
        decoder = Decoder(
            replace(ARCHITECTURE, norm=Norm("rms", eps)), {"n.weight": float64(2, 0.5)}
        )
        torch.testing.assert_close(
            decoder.norm("n", float64(3, 4)), float64(2 * expected[0], 0.5 * expected[1])
        )

    def test_weight_offset(self) -> None:
        decoder = Decoder(
            replace(ARCHITECTURE, norm=Norm("rms", 12.5, weight_offset=1.0)),
            {"n.weight": float64(0, 1)},
        )
        torch.testing.assert_close(decoder.norm("n", float64(3, 4)), float64(0.6, 1.6))

    def test_layer(self) -> None:
        # Mean 2, variance 1; with an epsilon of 3 the root is 2.
        weights = {"n.weight": float64(1, 4), "n.bias": float64(10, 20)}
        decoder = Decoder(replace(ARCHITECTURE, norm=Norm("layer", 3.0)), weights)
        torch.testing.assert_close(decoder.norm("n", float64(1, 3)), float64(9.5, 22))


class TestRotary:
    def test_each_pair_turns_at_its_own_speed(self) -> None:
        # theta 100 over four dimensions: 1 and 1/10 radians a position; at position 10, 10 and 1
        # radians.
        decoder = Decoder(replace(ARCHITECTURE, rotary=Rotary(100.0, 4)), {})
        turned = decoder.rotated(float64(1, 1, 0, 0).view(1, 1, 1, 4), torch.tensor([[10]]))
        expected = float64(math.cos(10), math.cos(1), math.sin(10), math.sin(1))
        torch.testing.assert_close(turned.flatten(), expected)

    def test_what_is_not_rotated_passes_through(self) -> None:
        decoder = Decoder(replace(ARCHITECTURE, rotary=Rotary(100.0, 2)), {})
        turned = decoder.rotated(float64(0, 1, 5, 6).view(1, 1, 1, 4), torch.tensor([[1]]))
        torch.testing.assert_close(turned.flatten(), float64(-math.sin(1), math.cos(1), 5, 6))

    def test_linear_scaling_divides_positions(self) -> None:
        torch.testing.assert_close(
            Rotary(100.0, 4, LinearScaling(4.0)).frequencies(), float64(0.25, 0.025)
        )

    def test_llama3_scaling_keeps_short_waves_and_slows_long_ones(self) -> None:
        # Frequencies 1, 10^-2, 10^-4, 10^-6 over 8192 positions make 1304, 13.0, 0.13 and 0.0013
        # turns: from four turns on a wave is kept, below one it is slowed eight times.
        scaled = Rotary(10.0**8, 8, Llama3Scaling(8.0, 1.0, 4.0, 8192)).frequencies()
        torch.testing.assert_close(scaled, float64(1, 1e-2, 1e-4 / 8, 1e-6 / 8))

    def test_llama3_scaling_between(self) -> None:
        # Two and a half turns are half way from one to four: the mean of kept and slowed, 9/16.
        positions = round(2.5 * 2 * math.pi * 1000)
        (frequency,) = Llama3Scaling(8.0, 1.0, 4.0, positions).scaled(float64(1e-3))
        assert float(frequency) == pytest.approx(1e-3 * 9 / 16, rel=1e-4)


class TestAttention:
    def test_shares_are_the_softmax_of_scaled_products(self) -> None:
        decoder = Decoder(ARCHITECTURE, attention_weights())
        out = decoder.attention(0, float64([[1, 0], [0, 1]]), still(2))
        # The second query scores 0 and 1/√2.
        share = 1 / (1 + math.exp(1 / math.sqrt(2)))
        torch.testing.assert_close(out[0], float64([1, 0], [share, 1 - share]))

    def test_a_window_of_one_sees_itself(self) -> None:
        decoder = Decoder(replace(ARCHITECTURE, windows=(1,)), attention_weights())
        hidden = float64([[1, 0], [0, 1], [3, 4]])
        torch.testing.assert_close(decoder.attention(0, hidden, still(3)), hidden)

    def test_padding_is_not_seen(self) -> None:
        decoder = Decoder(ARCHITECTURE, attention_weights())
        place = Place(torch.zeros(1, 2), torch.tensor([[False, True]]))
        out = decoder.attention(0, float64([[7, 7], [0, 1]]), place)
        torch.testing.assert_close(out[0, 1], float64(0, 1))

    def test_heads_share_keys_in_consecutive_groups(self) -> None:
        # Four heads of width one, two key-value heads that carry 1 and 2: the output tells who used
        # which.
        architecture = replace(
            ARCHITECTURE,
            hidden=4,
            heads=4,
            key_value_heads=2,
            head_dimension=1,
            rotary=Rotary(1.0, 0),
        )
        value = float64([1, 0, 0, 0], [2, 0, 0, 0])
        weights = attention_weights(
            q_proj=torch.eye(4, dtype=torch.float64),
            k_proj=value,
            v_proj=value,
            o_proj=torch.eye(4, dtype=torch.float64),
        )
        out = Decoder(architecture, weights).attention(0, float64([[1, 0, 0, 0]]), still(1))
        torch.testing.assert_close(out.flatten(), float64(1, 1, 2, 2))

    def test_scores_are_capped(self) -> None:
        # Scores 0 and 1/√2, capped at a half: 0 and tanh(√2) / 2.
        decoder = Decoder(replace(ARCHITECTURE, attention_softcap=0.5), attention_weights())
        out = decoder.attention(0, float64([[1, 0], [0, 1]]), still(2))
        share = 1 / (1 + math.exp(math.tanh(math.sqrt(2)) / 2))
        torch.testing.assert_close(out[0, 1], float64(share, 1 - share))

    def test_blocks_of_queries_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(2, 11, 2, generator=generator, dtype=torch.float64)
        place = Place.of(torch.ones(2, 11))
        for window in (None, 1, 4):
            decoder = Decoder(replace(ARCHITECTURE, windows=(window,)), attention_weights())
            whole = decoder.attention(0, hidden, place)
            monkeypatch.setattr("conformance.oracle.decoder._QUERIES_AT_ONCE", 3)
            torch.testing.assert_close(decoder.attention(0, hidden, place), whole)
            monkeypatch.undo()


class TestMlp:
    def test_gated(self) -> None:
        weights = {f"model.layers.0.mlp.{name}.weight": float64([value]) for name, value in
                   (("gate_proj", 1), ("up_proj", 2), ("down_proj", 3))}  # fmt: skip
        # silu(1) = 1 / (1 + 1/e), times two, times three
        out = Decoder(ARCHITECTURE, weights).mlp(0, float64([[1]]))
        assert float(out) == pytest.approx(6 / (1 + 1 / math.e))

    @pytest.mark.parametrize("activation", ["gelu_new", "gelu_tanh"])
    def test_plain_with_biases(self, activation: str) -> None:
        names = Names(gate="", up="fc1", down="fc2")
        path = "model.layers.0.mlp"
        weights = {f"{path}.fc1.weight": float64([1]), f"{path}.fc1.bias": float64(1),
                   f"{path}.fc2.weight": float64([2]), f"{path}.fc2.bias": float64(5)}  # fmt: skip
        decoder = Decoder(replace(ARCHITECTURE, names=names, activation=activation), weights)
        inner = 0.5 * 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (2 + 0.044715 * 8)))
        assert float(decoder.mlp(0, float64([[1]]))) == pytest.approx(2 * inner + 5)


class TestWhole:
    def test_layers_add_to_the_residual(self) -> None:
        # Attention and MLP that give zero leave the embedding, which the final norm and the head
        # then see.
        zero = torch.zeros(2, 2, dtype=torch.float64)
        weights = {
            **attention_weights(o_proj=zero),
            **{f"model.layers.0.mlp.{name}.weight": zero for name in ("gate_proj", "up_proj",
            "down_proj")},
            **{f"model.{name}.weight": torch.ones(2, dtype=torch.float64)
               for name in ("norm", "layers.0.input_layernorm",
               "layers.0.post_attention_layernorm")},
            "model.embed_tokens.weight": float64([3, 4], [0, 1]),
            "lm_head.weight": float64([math.sqrt(12.5), 0], [0, math.sqrt(12.5)], [0, 0]),
        }  # fmt: skip
        ids = torch.tensor([[0]])
        for changes, expected in (
            ({}, (3.0, 4.0, 0.0)),
            ({"logits_softcap": 2.0}, (2 * math.tanh(1.5), 2 * math.tanh(2), 0.0)),
            ({"tied": True}, (25 / math.sqrt(12.5), 4 / math.sqrt(12.5))),
            ({"embedding_scale": 7.0}, (3.0, 4.0, 0.0)),  # the norm takes it out again
        ):
            decoder = Decoder(replace(ARCHITECTURE, **changes), weights)
            logits = decoder.logits(decoder.embed(ids), Place.of(torch.ones(1, 1)))
            torch.testing.assert_close(logits.flatten(), float64(*expected))
        assert (
            float(Decoder(replace(ARCHITECTURE, embedding_scale=7.0), weights).embed(ids)[0, 0, 0])
            == 21.0
        )

    def test_some_tokens_are_columns_of_all(self) -> None:
        weights = {
            "model.norm.weight": float64(1, 1),
            "lm_head.weight": float64([1, 2], [3, 4], [5, 6]),
        }
        decoder = Decoder(replace(ARCHITECTURE, layers=0), weights)
        hidden, place = float64([[1, 2]]), still(1)
        some = decoder.logits(hidden, place, tokens=torch.tensor([2, 0]))
        torch.testing.assert_close(some, decoder.logits(hidden, place)[..., [2, 0]])

    def test_bfloat16_rounds_where_it_says(self) -> None:
        weights = {"n.weight": float64(1, 1)}
        hidden = float64(1, 3).to(torch.bfloat16)
        rounded = Decoder(ARCHITECTURE, weights, BFLOAT16).norm("n", hidden)
        exact = Decoder(ARCHITECTURE, weights, FLOAT64).norm("n", hidden.double())
        assert rounded.dtype == torch.bfloat16
        # Once, at the end: the nearest bfloat16 of the exact value.
        torch.testing.assert_close(rounded, exact.to(torch.bfloat16), rtol=0, atol=0)


def test_places_count_real_tokens() -> None:
    place = Place.of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))
    assert place.positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert place.visible(2)[1].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 0],
    ]
