import sys

from hydra.utils import instantiate

from mflight.synthesis.pool.packing import decode_sample
from mflight.synthesis.pool.shards import DroppedLine, SampleLine, parse_line
from mflight.synthesis.ray.generator import RayGenerator
from tests.unit.synthesis.squares import PLANNER, SYNTHESIZER


def test_answers_are_the_bytes_that_a_pool_holds(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # an actor sets them for its own process
        monkeypatch.setenv(name, "")
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 1
    planner = instantiate(PLANNER, _convert_="all")
    generator = RayGenerator(
        synthesizer=SYNTHESIZER, batch_size=2, num_threads=threads, has_gpu=False, image_format="png"
    )
    requests = [planner.request(index) for index in range(4)]
    answers = list(generator.draw([request.to_dict() for request in requests]))
    lines = [parse_line(answer["line"]) for answer in answers]
    assert [answer["index"] for answer in answers] == [line.index for line in lines] == [0, 1, 2, 3]
    assert [line.sample_id for line in lines] == [request.request_id for request in requests]
    assert [type(line) for line in lines] == [SampleLine, SampleLine, SampleLine, DroppedLine]
    assert lines[0].rejected == {"area": 1} and lines[3].num_regions == 4
    sample = decode_sample(answers[1]["span"], lines[1].sample_id)
    assert sample.provenance["index"] == 1
    assert sample.image[0, 0, 0] == requests[1].noise_seed % 256
    assert answers[3]["span"] == b""
