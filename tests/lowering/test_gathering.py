"""What is copied to have rows side by side, told by tables written here by hand."""

import numpy as np

from headforce.lowering.gathering import Run, reads_of


def layout(*readings, regions=(0,), rows=4):
    """The layout for heads whose regions begin at these rows, all with these readings: (first row, rows, shift)."""
    reads, runs = [], []
    for head, region in enumerate(regions):
        for i, its_runs in enumerate(readings):
            reads.append([0, head, i * rows, rows, len(runs), len(its_runs), 1, 0])
            runs += [[region + row, length, shift] for row, length, shift in its_runs]
    return reads_of(*(np.array(table, dtype=np.int32).tobytes() for table in (reads, runs)), True)


def copies(gather):
    return [(copy.at, *copy.run) for copy in gather.copies]


def test_a_single_run_is_read_where_it_lies():
    found = layout([(0, 8, 0)], [(4, 4, 0)], regions=(0, 20, 40))
    (group,) = found.groups
    assert [reading.keys.run for reading in group.readings] == [Run(0, 8, 0), Run(4, 4, 0)]
    assert [(block.heads, block.first_row, block.step) for block in group.blocks] == [((0, 1, 2), 0, 20)]
    assert group.buffer_rows == (0, 0)
    assert found.shifts == ()


def test_values_of_a_run_that_turns_are_read_where_they_lie():
    found = layout([(0, 4, 5)], [(0, 4, 6)])
    (group,) = found.groups
    assert [copies(reading.keys) for reading in group.readings] == [[(0, 0, 4, 5)], [(0, 0, 4, 6)]]
    assert all(reading.values.run == Run(0, 4, 0) for reading in group.readings)
    assert group.buffer_rows == (4, 0)
    assert found.shifts == (5, 6)


def test_what_lies_in_the_buffer_is_not_copied_again():
    near = [(12, 8, 0), (28, 4, 0)]
    found = layout([(0, 4, 9), (8, 4, 7), *near], [(0, 4, 10), (8, 4, 8), *near], [(0, 4, 11), *near])
    first, second, third = found.groups[0].readings
    assert copies(first.keys) == [(0, 12, 8, 0), (8, 28, 4, 0), (12, 0, 4, 9), (16, 8, 4, 7)]
    assert copies(second.keys) == [(12, 0, 4, 10), (16, 8, 4, 8)]
    assert copies(third.keys) == [(12, 0, 4, 11)]
    assert [len(reading.values.copies) for reading in (first, second, third)] == [4, 0, 0]
    assert [reading.values.rows for reading in (first, second, third)] == [20, 20, 16]
    assert found.groups[0].buffer_rows == (20, 20)


def test_what_stands_at_its_own_frame_by_chance_moves_nothing_else():
    near = (12, 8, 0)
    found = layout([(0, 4, 1), (4, 4, 0), near], [(0, 4, 2), (4, 4, 1), near])
    first, second = found.groups[0].readings
    assert copies(first.keys) == [(0, *near), (8, 0, 4, 1), (12, 4, 4, 0)]
    assert copies(second.keys) == [(8, 0, 4, 2), (12, 4, 4, 1)]
    assert not second.values.copies


def test_a_reading_of_its_own_keeps_its_order():
    runs = [(0, 4, 5), (12, 4, 0), (8, 4, -1)]
    (reading,) = layout(runs).groups[0].readings
    assert [(copy.run.row, copy.run.rows, copy.run.shift) for copy in reading.keys.copies] == runs


def test_a_reading_in_place_leaves_the_buffer_alone():
    gathered = [(0, 4, 0), (8, 4, 0)]
    readings = layout(gathered, [(0, 4, 0)], gathered).groups[0].readings
    assert [len(reading.keys.copies) for reading in readings] == [2, 0, 0]
