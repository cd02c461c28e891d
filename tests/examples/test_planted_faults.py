"""The faults of benchmarks/planted_faults.py can be planted in today's code."""

import scripts


def test_every_text_occurs_once_and_is_python_with_its_fault():
    done = scripts.run("benchmarks/planted_faults.py", "--check")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("60 faults can be planted")
