import sys

from hydra.utils import instantiate

from mflight.synthesis.pool.packing import decode_sample
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
    told = [answer["answer"] for answer in answers]
    assert [answer["index"] for answer in answers] == [one.index for one in told] == [0, 1, 2, 3]
    assert [one.request_id for one in told] == [request.request_id for request in requests]
    assert [one.category_ids is None for one in told] == [False, False, False, True]
    assert [rule for _, rule in told[0].regions] == ["area", None, None, None] and len(told[3].regions) == 4
    sample = decode_sample(answers[1]["span"], told[1].request_id)
    assert sample.provenance["index"] == 1
    assert sample.image[0, 0, 0] == requests[1].noise_seed % 256
    assert answers[3]["span"] == b""
