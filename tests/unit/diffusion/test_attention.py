import pytest
import torch

from mflight.diffusion import attention
from mflight.diffusion.attention import (
    AttentionAccumulator,
    AttentionRecorder,
    AttentionSettings,
    halved_size,
)
from tests.unit.diffusion.tiny_checkpoint import tiny_unet

NUM_TOKENS = 7


@pytest.fixture(scope="module")
def unet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return tiny_unet().eval().requires_grad_(False)


def inputs(latent_hw, batch=4):
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(batch, 3, *latent_hw, generator=generator)
    return samples, torch.randn(batch, NUM_TOKENS, 16, generator=generator) * 3


def token_weights(*tokens_of_regions):
    weights = torch.zeros(len(tokens_of_regions), NUM_TOKENS)
    for row, tokens in zip(weights, tokens_of_regions, strict=True):
        row[list(tokens)] = 1 / len(tokens)
    return weights


def record(unet, latent_hw, weights, levels=(0, 1, 2), blocks=("down", "up"), evaluations=1):
    samples, embeds = inputs(latent_hw)
    accumulator = AttentionAccumulator(latent_hw, weights, levels)
    recorder = AttentionRecorder(unet, blocks)
    with recorder.installed():
        for evaluation in range(evaluations):
            with recorder.reporting_to(accumulator):
                output = unet(samples, 10 * evaluation, embeds).sample
    return accumulator.attention_maps(), output


def explicit_maps(unet, latent_hw, tokens_of_regions, blocks=("down_blocks", "up_blocks")):
    """Mean softmax attention by level, from hooks on the projections: no code of ours."""
    projected = {}

    def keep(name):
        return lambda module, args, output: projected.__setitem__(name, output)

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in unet.named_modules()
        if name.startswith(blocks) and name.endswith(("attn2.to_q", "attn2.to_k"))
    ]
    samples, embeds = inputs(latent_hw)
    output = unet(samples, 0, embeds).sample
    for handle in handles:
        handle.remove()
    per_size = {}
    for name in [name for name in projected if name.endswith("to_q")]:
        query, key = projected[name], projected[name.replace("to_q", "to_k")]
        for head_query, head_key in zip(query.chunk(2, -1), key.chunk(2, -1), strict=True):  # 2 heads
            logits = head_query @ head_key.transpose(1, 2) / head_query.shape[-1] ** 0.5
            per_size.setdefault(query.shape[1], []).append(logits.softmax(-1)[-len(tokens_of_regions) :])
    maps = [torch.stack(per_size[cells]).mean(0) for cells in sorted(per_size, reverse=True)]
    wanted = [[m[r][:, list(tokens)].mean(-1) for m in maps] for r, tokens in enumerate(tokens_of_regions)]
    return wanted, output


@pytest.mark.parametrize("latent_hw", [(8, 8), (9, 13), (12, 7)])
def test_recorded_maps_are_the_explicit_softmax(unet, latent_hw):
    tokens_of_regions = [(2,), (1, 4, 5)]
    maps, output = record(unet, latent_hw, token_weights(*tokens_of_regions))
    expected, stock_output = explicit_maps(unet, latent_hw, tokens_of_regions)
    torch.testing.assert_close(output, stock_output, rtol=0, atol=1e-6)
    assert [[tuple(m.shape) for m in of_region] for of_region in maps] == [
        [latent_hw, halved_size(latent_hw, 1)] for _ in tokens_of_regions
    ]
    for of_region, expected_of_region in zip(maps, expected, strict=True):
        for actual, reference in zip(of_region, expected_of_region, strict=True):
            torch.testing.assert_close(actual.flatten(), reference, rtol=1e-5, atol=1e-7)


def test_maps_of_all_tokens_sum_to_one(unet):
    maps, _ = record(unet, (8, 8), NUM_TOKENS * token_weights(range(NUM_TOKENS)))
    for attention_map in maps[0]:
        torch.testing.assert_close(attention_map, torch.ones_like(attention_map))


def test_repeated_evaluations_are_averaged(unet):
    once, _ = record(unet, (8, 8), token_weights((2,)), evaluations=1)
    samples, embeds = inputs((8, 8))
    accumulator = AttentionAccumulator((8, 8), token_weights((2,)), (0, 1))
    recorder = AttentionRecorder(unet)
    with recorder.installed():
        for _ in range(3):
            with recorder.reporting_to(accumulator):
                unet(samples, 0, embeds)
        unet(samples, 500, embeds)  # nobody listens
    for thrice, reference in zip(accumulator.attention_maps()[0], once[0], strict=True):
        torch.testing.assert_close(thrice, reference)


def test_output_is_the_fused_kernels_while_attention_is_kept(unet, monkeypatch):
    """Each reporting layer calls the kernel once, and its output is what the kernel gives."""
    calls = []

    class Kernels:
        def scaled_dot_product_attention(self, query, key, value, **settings):
            calls.append((tuple(query.shape), tuple(key.shape), settings))
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, **settings)

    monkeypatch.setattr(attention, "F", Kernels())
    record(unet, (8, 8), token_weights((2,)))
    names = [n for n in unet.attn_processors if n.startswith(("down", "up")) and "attn2" in n]
    assert len(calls) == len(names) > 0
    assert {query for query, _, _ in calls} == {(4, 2, 64, 4), (4, 2, 16, 8)}  # heads share the channels
    assert all(key[2] == NUM_TOKENS for _, key, _ in calls)
    monkeypatch.setattr(
        Kernels, "scaled_dot_product_attention", lambda self, query, *_, **__: torch.zeros_like(query)
    )
    _, changed = record(unet, (8, 8), token_weights((2,)))
    _, expected = explicit_maps(unet, (8, 8), [(2,)])
    assert not torch.allclose(changed, expected)


def test_of_the_attention_one_sum_a_level_is_kept_in_place(unet):
    """Two of four samples and one number a cell, whatever the tokens, layers, heads and evaluations."""
    samples, embeds = inputs((8, 8))
    accumulator = AttentionAccumulator((8, 8), token_weights((2,), (1, 4, 5)), (0, 1))
    recorder = AttentionRecorder(unet)
    kept = []
    with recorder.installed():
        for evaluation in range(3):
            with recorder.reporting_to(accumulator):
                unet(samples, 10 * evaluation, embeds)
            sums = accumulator._sum_of_level
            kept.append([(level, s.data_ptr(), s.sum().item()) for level, s in sorted(sums.items())])
    assert {level: (tuple(s.shape), s.dtype) for level, s in sums.items()} == {
        0: ((2, 64), torch.float32),
        1: ((2, 16), torch.float32),
    }
    assert all(
        s.untyped_storage().nbytes() == s.numel() * 4 for s in sums.values()
    )  # a view of nothing larger
    assert [[place[:2] for place in places] for places in kept] == [[place[:2] for place in kept[0]]] * 3
    assert all(kept[0][level][2] < kept[1][level][2] < kept[2][level][2] for level in (0, 1))
    tensors = [value for value in vars(accumulator).values() if isinstance(value, torch.Tensor)]
    assert [tuple(tensor.shape) for tensor in tensors] == [(2, NUM_TOKENS)]  # the weights, nothing more


def test_levels_and_blocks_are_chosen(unet):
    maps, _ = record(unet, (8, 8), token_weights((2,)), levels=(1,))
    assert [tuple(m.shape) for m in maps[0]] == [(4, 4)]
    down, _ = record(unet, (8, 8), token_weights((2,)), blocks=("down",))
    expected, _ = explicit_maps(unet, (8, 8), [(2,)], blocks=("down_blocks",))
    torch.testing.assert_close(down[0][0].flatten(), expected[0][0])


def test_processors_are_put_back(unet):
    before = unet.attn_processors
    record(unet, (8, 8), token_weights((2,)))
    assert unet.attn_processors == before


def test_blocks_without_cross_attention_are_refused():
    unet = tiny_unet()
    unet.set_attn_processor(unet.attn_processors)
    with pytest.raises(ValueError, match=r"\('side',\)"):
        AttentionRecorder(unet, ("side",))


def test_levels_without_cross_attention_are_refused(unet):
    with pytest.raises(ValueError, match=r"hold one of \[0, 1\].*got \(2, 3\)"):
        AttentionRecorder(unet, levels=(2, 3))
    AttentionRecorder(unet, ("mid",), levels=(2,))  # the mid block works at the coarsest
    with pytest.raises(ValueError, match=r"hold one of \[2\].*'mid'.*got \(0, 1\)"):
        AttentionRecorder(unet, ("mid",), levels=(0, 1))


@pytest.mark.parametrize("latent_hw", [(8, 8), (9, 13)])
@pytest.mark.parametrize("block", ["down", "mid", "up"])
def test_each_block_reports_at_the_levels_that_it_has(unet, block, latent_hw):
    levels = {"down": (0, 1), "mid": (2,), "up": (0, 1)}[block]
    maps, _ = record(unet, latent_hw, token_weights((2,)), levels=range(4), blocks=(block,))
    assert [tuple(m.shape) for m in maps[0]] == [halved_size(latent_hw, level) for level in levels]


@pytest.mark.parametrize(("size_hw", "level", "expected"), [((30, 41), 1, (15, 21)), ((30, 41), 2, (8, 11))])
def test_halving_rounds_up(size_hw, level, expected):
    assert halved_size(size_hw, level) == expected


def test_settings_count_evaluations_and_refuse_nonsense():
    settings = AttentionSettings(first_evaluation=1, stop_evaluation=3)
    assert [settings.counts(evaluation) for evaluation in range(4)] == [False, True, True, False]
    with pytest.raises(ValueError, match="sideways"):
        AttentionSettings(blocks=("sideways",))
    with pytest.raises(ValueError, match="-1"):
        AttentionSettings(levels=(-1,))
    with pytest.raises(ValueError, match="above first_evaluation 3, got 3"):
        AttentionSettings(first_evaluation=3, stop_evaluation=3)
