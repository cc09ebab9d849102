"""The reference decoder against cases small enough to compute by hand, and then against
transformers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from conformance.oracle import BFLOAT16, FLOAT64, Architecture, Decoder, Place
from conformance.oracle.architecture import (
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Names,
    Norm,
    Rotary,
    YarnScaling,
)

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

    @pytest.mark.parametrize(("wide_weight", "expected"), [(False, 2.390625), (True, 2.375)])
    def test_a_weight_in_wide_precision_is_rounded_with_its_norm(
        self, wide_weight: bool, expected: float
    ) -> None:
        # bfloat16 has steps of 1/128 from one to two, and of 1/64 from two to four. (1, 3) over its
        # root mean square, √5, ends in 1.34164, or 172/128 in bfloat16. Times 227/128 that is
        # 2.3831, nearest to 153/64; without the first rounding it is 2.3793, nearest to 152/64.
        decoder = Decoder(
            replace(ARCHITECTURE, norm=Norm("rms", 0.0, wide_weight=wide_weight)),
            {"n.weight": float64(1, 227 / 128)},
            BFLOAT16,
        )
        normed = decoder.norm("n", float64(1, 3).to(torch.bfloat16))
        assert float(normed[1]) == expected

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

    def test_yarn_keeps_short_waves_slows_long_ones_and_ramps_between(self) -> None:
        # Frequencies 10^-n over 4012 positions make 638.5 · 10^-n turns: 32 of them at n = 1.30,
        # one at n = 2.81. So the ramp goes from the whole number before, one, to the one after,
        # three; half way, at two, a wave is the mean of kept and slowed: 5/8 for a factor of four.
        scaled = Rotary(1e4, 8, YarnScaling(4.0, 4012, 32.0, 1.0, 1.0)).frequencies()
        torch.testing.assert_close(scaled, float64(1, 0.1, 0.01 * 5 / 8, 0.001 / 4))

    def test_longrope_divides_each_frequency_by_a_factor_of_its_own(self) -> None:
        # Frequencies 1 and 1/10; a sequence that ends after position 8 takes the long factors.
        rotary = Rotary(100.0, 4, LongRope((1.0, 2.0), (4.0, 5.0), 8, amplitude=1.5))
        torch.testing.assert_close(rotary.frequencies(8), float64(1, 0.05))
        torch.testing.assert_close(rotary.frequencies(9), float64(0.25, 0.02))

    def test_longrope_is_chosen_by_the_farthest_position_of_the_batch(self) -> None:
        # Two heads' worth of ones at positions 0 and 8: 8 is the ninth position, so both rows turn
        # by the long factors, and all is stretched by the amplitude.
        rotary = Rotary(100.0, 4, LongRope((1.0, 2.0), (4.0, 5.0), 8, amplitude=1.5))
        decoder = Decoder(replace(ARCHITECTURE, rotary=rotary), {})
        turned = decoder.rotated(
            float64(1, 1, 0, 0).expand(2, 1, 1, 4), torch.tensor([[0], [8]])
        ).reshape(2, 4)
        torch.testing.assert_close(turned[0], float64(1.5, 1.5, 0, 0))
        expected = float64(math.cos(2), math.cos(0.16), math.sin(2), math.sin(0.16))
        torch.testing.assert_close(turned[1], 1.5 * expected)

    def test_layers_may_turn_at_their_own_speeds(self) -> None:
        # A query (0, 1) at position 1 and a key (1, 0) at position 0 score -sin of the angle
        # between them: 1 radian in the first layer, 1/2 in the second.
        rotaries = (Rotary(1.0, 2), Rotary(1.0, 2, LinearScaling(2.0)))
        architecture = replace(
            ARCHITECTURE, layers=2, windows=(None, None), layer_rotaries=rotaries
        )
        weights = {
            name.replace("layers.0", f"layers.{index}"): tensor
            for index in (0, 1)
            for name, tensor in attention_weights().items()
        }
        for index, angle in ((0, 1.0), (1, 0.5)):
            out = Decoder(architecture, weights).attention(
                index, float64([[1, 0], [0, 1]]), Place.of(torch.ones(1, 2))
            )
            share = 1 / (1 + math.exp((-math.sin(angle) - 1) / math.sqrt(2)))
            torch.testing.assert_close(out[0, 1], float64(1 - share, share))

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

    @pytest.mark.parametrize(
        ("order", "rows"),
        [
            # Queries of both heads, then the one shared key, then its value.
            ("stacked", ("q0", "q1", "k0", "v0")),
            ("by head", ("q0", "k0", "v0", "q1", "k1", "v1")),
        ],
    )
    def test_fused_matrices_are_read_in_their_order(
        self, order: str, rows: tuple[str, ...]
    ) -> None:
        # Heads of width one that score q · k; the second of two tokens, which are (1, 0) and
        # (0, 1), sees both.
        values = {
            "q0": (0, 2), "q1": (0, 3), "k0": (1, 0), "k1": (2, 0), "v0": (5, 7), "v1": (11, 13),
        }  # fmt: skip
        architecture = replace(
            ARCHITECTURE,
            heads=2,
            key_value_heads=sum(row.startswith("k") for row in rows),
            head_dimension=1,
            attention_scale=1.0,
            rotary=Rotary(1.0, 0),
            query_key_value=order,
            names=Names(query="qkv", key="qkv", value="qkv"),
        )
        weights = {
            f"{ATTENTION}.qkv.weight": float64(*(values[row] for row in rows)),
            f"{ATTENTION}.o_proj.weight": IDENTITY,
        }
        out = Decoder(architecture, weights).attention(0, float64([[1, 0], [0, 1]]), still(2))

        def mixed(query: int, key: int, first: int, second: int) -> float:
            """The key of the second token is zero, and so is its score."""
            share = 1 / (1 + math.exp(-query * key))
            return share * first + (1 - share) * second

        second_head = mixed(3, 1, 5, 7) if order == "stacked" else mixed(3, 2, 11, 13)
        torch.testing.assert_close(out[0, 1], float64(mixed(2, 1, 5, 7), second_head))

    def test_a_fused_bias_is_split_with_its_matrix(self) -> None:
        architecture = replace(
            ARCHITECTURE,
            query_key_value="stacked",
            names=Names(query="qkv", key="qkv", value="qkv"),
        )
        weights = {
            f"{ATTENTION}.qkv.weight": torch.zeros(6, 2, dtype=torch.float64),
            f"{ATTENTION}.qkv.bias": float64(1, 2, 3, 4, 5, 6),
            f"{ATTENTION}.o_proj.weight": IDENTITY,
        }
        out = Decoder(architecture, weights).attention(0, float64([[7, 7]]), still(1))
        torch.testing.assert_close(out[0, 0], float64(5, 6))

    @pytest.mark.parametrize("over", ["head", "width"])
    def test_queries_and_keys_are_normed_by_head_or_all_together(self, over: str) -> None:
        # Two heads of width one, of which the second token's queries are 3 and 4 and the first
        # token's keys 1 and 1. By head, both queries become 1; over the width they are divided by
        # √12.5. The second token's own values are zero.
        names = Names(query_norm="q_norm", key_norm="k_norm")
        architecture = replace(
            ARCHITECTURE, heads=2, key_value_heads=2, head_dimension=1, attention_scale=1.0,
            rotary=Rotary(1.0, 0), names=names, query_key_norm=over,
        )  # fmt: skip
        width = 1 if over == "head" else 2
        weights = {
            **attention_weights(
                q_proj=float64([1, 3], [1, 4]), k_proj=float64([1, -1], [1, -1]),
                v_proj=float64([1, 0], [1, 0]),
            ),
            f"{ATTENTION}.q_norm.weight": torch.ones(width, dtype=torch.float64),
            f"{ATTENTION}.k_norm.weight": torch.full((width,), 0.5, dtype=torch.float64),
        }  # fmt: skip
        out = Decoder(architecture, weights).attention(0, float64([[1, 0], [0, 1]]), still(2))
        queries = (1, 1) if over == "head" else (3 / math.sqrt(12.5), 4 / math.sqrt(12.5))
        # Keys become 1/2 and -1/2 either way.
        torch.testing.assert_close(
            out[0, 1], float64(*(1 / (1 + math.exp(-query)) for query in queries))
        )

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

    def test_a_fused_matrix_holds_the_gate_first(self) -> None:
        weights = {
            "model.layers.0.mlp.both.weight": float64([1], [2]),
            "model.layers.0.mlp.down_proj.weight": float64([3]),
        }
        names = Names(gate="both", up="both")
        out = Decoder(replace(ARCHITECTURE, names=names), weights).mlp(0, float64([[1]]))
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


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


class TestResiduals:
    """One layer over the single token (3, 4), whose attention is the identity. Norms have an
    epsilon that makes the norm of (3, 4) a fifth of it: its mean square is 12.5, and so is the
    epsilon."""

    def layer(self, names: Names, *, parallel: bool = False, **norms: float) -> torch.Tensor:
        architecture = replace(ARCHITECTURE, norm=Norm("rms", 12.5), names=names, parallel=parallel)
        path = "model.layers.0"
        weights = {
            **attention_weights(),
            f"{path}.mlp.up.weight": IDENTITY,
            f"{path}.mlp.down.weight": IDENTITY,
            **{f"{path}.{name}.weight": float64(value, value) for name, value in norms.items()},
        }
        (out,) = Decoder(architecture, weights).layer(0, float64([[3, 4]]), still(1))[0]
        return out

    def test_norms_may_stand_after_attention_and_mlp_alone(self) -> None:
        names = Names(
            attention_norm="", after_attention_norm="a", mlp_norm="", after_mlp_norm="m",
            gate="", up="up", down="down",
        )  # fmt: skip
        # Attention gives (3, 4), its norm with weight ten is (6, 8); the sum is (9, 12).
        fed = silu(9), silu(12)
        root = math.sqrt((fed[0] ** 2 + fed[1] ** 2) / 2 + 12.5)
        torch.testing.assert_close(
            self.layer(names, a=10.0, m=2.0),
            float64(9 + 2 * fed[0] / root, 12 + 2 * fed[1] / root),
        )

    def test_norms_may_stand_before_and_after(self) -> None:
        names = Names(
            attention_norm="b", after_attention_norm="a", mlp_norm="c", after_mlp_norm="m",
            gate="", up="up", down="down",
        )  # fmt: skip
        # (3, 4) · 5 / 5 is (3, 4) again, so attention adds (6, 8). (9, 12) has the mean square
        # 112.5, which makes the root √125.
        fed = silu(9 / math.sqrt(125)), silu(12 / math.sqrt(125))
        root = math.sqrt((fed[0] ** 2 + fed[1] ** 2) / 2 + 12.5)
        torch.testing.assert_close(
            self.layer(names, b=5.0, a=10.0, c=1.0, m=2.0),
            float64(9 + 2 * fed[0] / root, 12 + 2 * fed[1] / root),
        )

    def test_in_parallel_the_mlp_does_not_see_attention(self) -> None:
        names = Names(attention_norm="b", mlp_norm="c", gate="", up="up", down="down")
        # Attention adds (3, 4), the MLP the silu of (6, 8).
        torch.testing.assert_close(
            self.layer(names, parallel=True, b=5.0, c=10.0), float64(6 + silu(6), 8 + silu(8))
        )

    def test_in_parallel_one_norm_may_feed_both(self) -> None:
        names = Names(attention_norm="b", mlp_norm="", gate="", up="up", down="down")
        torch.testing.assert_close(
            self.layer(names, parallel=True, b=5.0), float64(6 + silu(3), 8 + silu(4))
        )


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

    def test_the_embedding_scale_is_rounded_first(self) -> None:
        # Gemma 7B's √3072 = 55.426 is 55.5 in bfloat16, which has steps of 1/4 there. Times 9/8
        # that is 62.44, nearest to 62.5; without the first rounding it is 62.35, nearest to 62.25.
        weights = {"model.embed_tokens.weight": float64([1, 9 / 8])}
        architecture = replace(ARCHITECTURE, embedding_scale=math.sqrt(3072))
        ids = torch.tensor([[0]])
        embedded = Decoder(architecture, weights, BFLOAT16).embed(ids)
        torch.testing.assert_close(embedded.flatten().double(), float64(55.5, 62.5), rtol=0, atol=0)
        torch.testing.assert_close(
            Decoder(architecture, weights).embed(ids).flatten(),
            float64(math.sqrt(3072), 9 / 8 * math.sqrt(3072)),
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
