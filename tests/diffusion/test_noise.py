"""The draws of a run against torch's generator used by hand."""

import pytest
import torch

from ltxgen.diffusion import NoiseSource

SHAPES = [(1, 24, 128), (1, 6, 128), (1, 96, 128), (1, 6, 128)]


@pytest.mark.parametrize("draw_on", ["cpu", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_generator_continues_over_all_draws(draw_on, dtype):
    source = NoiseSource(10, dtype=dtype, draw_on=draw_on)
    draws = [source.draw(shape) for shape in SHAPES]
    generator = torch.Generator().manual_seed(10)
    # Whether a bf16 draw is the fp32 draw rounded depends on torch's version: only "cpu" promises it.
    drawn_in = torch.float32 if draw_on == "cpu" else dtype
    for noise, shape in zip(draws, SHAPES, strict=True):
        assert noise.dtype == dtype
        assert torch.equal(noise, torch.randn(shape, generator=generator, dtype=drawn_in).to(dtype))
    assert not torch.equal(draws[1], draws[3])


def test_appended_tokens_leave_the_video_prefix_and_change_the_audio():
    plain, appended = NoiseSource(3), NoiseSource(3)
    video, audio = plain.draw((1, 24, 128)), plain.draw((1, 6, 128))
    longer_video, other_audio = appended.draw((1, 28, 128)), appended.draw((1, 6, 128))
    assert torch.equal(longer_video[:, :24], video)
    assert not torch.equal(other_audio, audio)


@pytest.mark.parametrize("draw_on", ["cpu", "device"])
def test_a_stored_source_goes_on_where_it_was(draw_on):
    source = NoiseSource(10, draw_on=draw_on)
    source.draw(SHAPES[0])
    state = source.state()
    expected = source.draw(SHAPES[1])
    assert torch.equal(NoiseSource.from_state(state).draw(SHAPES[1]), expected)
    assert state.draw_on == draw_on
    assert state.generator.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_is_the_same_on_any_device_unless_drawn_there():
    here, there = NoiseSource(10, dtype=torch.bfloat16), NoiseSource(10, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(here.draw(SHAPES[0]), there.draw(SHAPES[0]).cpu())
    drawn_there = NoiseSource(10, device="cuda", dtype=torch.bfloat16, draw_on="device").draw(SHAPES[0])
    generator = torch.Generator("cuda").manual_seed(10)
    expected = torch.randn(SHAPES[0], generator=generator, dtype=torch.bfloat16, device="cuda")
    assert torch.equal(drawn_there, expected)


@pytest.mark.parametrize("draw_on", ["cpu", "device"])
def test_a_seeded_source_is_its_own_and_may_be_in_fp64(draw_on):
    run = NoiseSource(10, dtype=torch.bfloat16, draw_on=draw_on)
    own = run.seeded(-1, torch.float64)
    expected = torch.randn(3, 4, generator=torch.Generator().manual_seed(-1), dtype=torch.float64)
    assert torch.equal(own.draw((3, 4)), expected)
    assert torch.equal(run.draw((5,)), NoiseSource(10, dtype=torch.bfloat16, draw_on=draw_on).draw((5,)))
