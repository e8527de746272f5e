"""Wall-clock time of a job by stage."""

from img2img.worker.engine.timeline import Stage, Timeline


def test_add_sums_intervals_of_a_stage():
    timeline = Timeline()
    timeline.add("denoise", 1.0, 2.0)
    timeline.add("decode", 2.0, 2.5)
    timeline.add("denoise", 5.0, 7.0)
    assert timeline.stages == {"denoise": Stage(1.0, 7.0, 3.0), "decode": Stage(2.0, 2.5, 0.5)}
    assert timeline.seconds() == {"denoise": 3.0, "decode": 0.5}


def test_merge_takes_first_start_last_end_and_longest_seconds():
    first, second, job = Timeline(), Timeline(), Timeline()
    first.add("denoise", 1.0, 4.0)
    second.add("denoise", 3.0, 5.0)
    second.add("decode", 5.0, 6.0)
    job.add("load", 0.0, 1.0)
    job.merge([first, second])
    assert job.stages == {"load": Stage(0.0, 1.0, 1.0), "denoise": Stage(1.0, 5.0, 3.0), "decode": Stage(5.0, 6.0, 1.0)}
