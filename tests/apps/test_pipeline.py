"""Images that run at the same time: order, groups of one size, failures, and bounds on what waits."""

import threading
import weakref

import pytest
import torch

from instseg_d2.apps.pipeline import Pipeline


class FakePredictor:
    """Finds nothing; images are padded to multiples of 10. Notes the sizes of its calls."""

    def __init__(self, batches: bool, most: int = 100):
        self.batches, self.on_cpu, self.most = batches, not batches, most
        self.calls, self.threads = [], set()

    def canvas(self, image):
        return tuple(-(-side // 10) * 10 for side in image.shape[-2:])

    def batch_key(self, record):
        return self.canvas(record["image"])

    def outputs(self, inputs, score_threshold=0.0, masks="full"):
        assert (score_threshold, masks) == (0.5, "run_lengths")
        self.threads.add(threading.get_ident())
        self.calls.append([tuple(x["image"].shape[-2:]) for x in inputs])
        if len(inputs) > self.most:
            raise MemoryError
        return [{"instances": tuple(x["image"].shape[-2:])} for x in inputs]


def read(item):
    if item.task is None:
        raise ValueError("broken")
    item.record = {"image": torch.empty(3, *item.task)}


def finish(item):
    if item.task == (1, 1):
        raise OSError("full")
    item.result = item.output["instances"]


def run(predictor, batch, tasks):
    pipeline = Pipeline(predictor, batch, 0.5)
    return pipeline, list(pipeline.run(tasks, read, finish))


TASKS = [(8, 12), (30, 30), None, (10, 20), (1, 1), (30, 30), (9, 11), (50, 50), (7, 19), (8, 8)]


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_items_come_in_order_with_their_own_results(batches, batch):
    _, items = run(FakePredictor(batches), batch, TASKS)
    assert [item.number for item in items] == list(range(len(TASKS)))
    assert [item.task for item in items] == TASKS
    failed = [None, (1, 1)]
    assert [item.result for item in items] == [None if task in failed else task for task in TASKS]
    assert [str(item.error) for item in items if item.error] == ["broken", "full"]


def test_groups_have_one_padded_size_and_the_padding_is_counted():
    predictor = FakePredictor(batches=True)
    pipeline, _ = run(predictor, 2, TASKS)
    # Padded to (10, 20): the 1st, 4th, 7th and 9th; to (30, 30): the 2nd and 6th; to (10, 10): the 5th and 10th.
    assert [call for call in predictor.calls if len(call) > 1] == [
        [(8, 12), (10, 20)],
        [(30, 30), (30, 30)],
        [(9, 11), (7, 19)],
        [(1, 1), (8, 8)],
    ]
    assert (pipeline.batches, pipeline.images) == (5, 9)
    pixels = sum(height * width for height, width in filter(None, TASKS))
    assert pipeline.padding == pytest.approx(1 - pixels / (4 * 200 + 2 * 900 + 2 * 100 + 2500))


def test_an_image_does_not_wait_long_for_others_of_its_size():
    predictor = FakePredictor(batches=True)
    taken = []

    def tasks():
        for number in range(200):
            taken.append(number)
            yield (10 + 10 * number, 10)

    for item in Pipeline(predictor, 4, 0.5).run(tasks(), read, finish):
        assert len(taken) - item.number < 50
    assert len(predictor.calls) == 200


def test_a_batch_too_large_for_the_memory_runs_one_by_one():
    predictor = FakePredictor(batches=True, most=1)
    pipeline, items = run(predictor, 3, [(10, 10)] * 3)
    assert [len(call) for call in predictor.calls] == [3, 1, 1, 1]
    assert [item.result for item in items] == [(10, 10)] * 3
    assert (pipeline.batches, pipeline.images) == (3, 3)


def test_the_tensors_of_a_failed_batch_are_freed_before_its_images_run_alone():
    tensors = []

    class Large(FakePredictor):
        def outputs(self, inputs, *args, **kwargs):
            if len(inputs) == 1:
                assert tensors[0]() is None
            large = torch.empty(10)
            tensors.append(weakref.ref(large))
            return super().outputs(inputs, *args, **kwargs)

    _, items = run(Large(batches=True, most=1), 2, [(10, 10)] * 2)
    assert [item.result for item in items] == [(10, 10)] * 2


def test_memory_of_the_cpu_that_does_not_suffice_skips_the_image():
    class Short(FakePredictor):
        def outputs(self, inputs, *args, **kwargs):
            if inputs[0]["image"].shape[1] == 7:
                torch.empty(1 << 60)
            return super().outputs(inputs, *args, **kwargs)

    _, items = run(Short(batches=False), 2, [(10, 10), (7, 7), (10, 10)])
    assert [str(item.error).split(" (")[0] for item in items] == ["None", "out of memory", "None"]


def test_on_a_cpu_each_thread_runs_one_image():
    threads = torch.get_num_threads()
    barrier = threading.Barrier(3, timeout=60)

    class Meeting(FakePredictor):
        def outputs(self, *args, **kwargs):
            barrier.wait()  # breaks unless three images run at the same time
            assert torch.get_num_threads() == max(1, threads // 3)
            return super().outputs(*args, **kwargs)

    predictor = Meeting(batches=False)
    run(predictor, 3, [(10, 10)] * 6)
    assert [len(call) for call in predictor.calls] == [1] * 6
    assert len(predictor.threads) == 3
    assert torch.get_num_threads() == threads


def test_other_errors_end_the_run():
    def fails(item):
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault"):
        list(Pipeline(FakePredictor(False), 2, 0.5).run(TASKS, read, fails))
