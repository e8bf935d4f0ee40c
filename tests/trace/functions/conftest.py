"""Fixtures for function traces: the data of the golden figures, and raw files like the public ones."""

import pickle
from collections import OrderedDict
from functools import cache

import numpy as np
import pytest

from alpa_serve.trace import Trace
from alpa_serve.trace.functions.raw_files import V1_FILE, V2_FILE

MINUTES = [str(minute) for minute in range(1, 1441)]


def golden_functions(trace_name, seed, num_functions):
    """Return the dict that the golden figures of Trace.replay were computed from."""
    random = np.random.RandomState(seed)
    functions = OrderedDict()
    for i in range(num_functions):
        if trace_name == "azure_v1":
            functions[f"f{i}"] = random.poisson(random.uniform(0.1, 3), 20160).astype(np.int32)
        else:
            rate = random.uniform(0.002, 0.05)
            functions[f"f{i}"] = np.sort(random.uniform(0, 172800, random.poisson(rate * 172800)))
    return functions


@pytest.fixture(scope="session")
def golden_trace(tmp_path_factory):
    """Return golden_trace(name, seed, num_functions) -> the Trace of a pickle as users of AlpaServe have it."""

    @cache
    def load(trace_name, seed, num_functions):
        path = tmp_path_factory.mktemp("golden") / f"{trace_name}.pkl"
        path.write_bytes(pickle.dumps(golden_functions(trace_name, seed, num_functions)))
        return Trace(trace_name, path)

    return load


@pytest.fixture
def trace_of(tmp_path):
    """Return trace_of(trace_name, functions) -> the Trace of a pickled dict."""

    def build(trace_name, functions):
        path = tmp_path / f"{trace_name}.pkl"
        path.write_bytes(pickle.dumps(OrderedDict(functions)))
        return Trace(trace_name, path)

    return build


@pytest.fixture
def write_v1(tmp_path):
    """Return write_v1(rows of day 1, ...) -> the folder; a row is (owner, app, function, {minute: n})."""

    def write(*days):
        header = ["HashOwner", "HashApp", "HashFunction", "Trigger", *MINUTES]
        for day, rows in enumerate(days, 1):
            lines = [",".join(header)]
            for owner, app, function, counts in rows:
                cells = [owner, app, function, "http", *(str(counts.get(int(minute), 0)) for minute in MINUTES)]
                lines.append(",".join(cells))
            (tmp_path / V1_FILE.format(day=day)).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def write_v2(tmp_path):
    """Return write_v2(content) -> the folder with a raw file of this content (text or bytes)."""

    def write(content):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / V2_FILE).write_bytes(data)
        return tmp_path

    return write
