"""Orders and reports as lines of JSON, both ways, and whatever else a pipe may hold."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import ExitCode, RemoteProtocolError
from mux.rendezvous.order import Kind, Order, Report
from mux.rendezvous.target import Target

# What a file name or an option can be made of: any byte but NUL, as Python keeps it.
bytes_as_text = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
maybe = st.none() | bytes_as_text
targets = st.builds(
    Target,
    typed=bytes_as_text,
    user=bytes_as_text,
    hostname=bytes_as_text,
    port=st.integers(1, 65535),
    control_path=maybe,
    own_control_path=bytes_as_text,
    config=st.dictionaries(bytes_as_text, st.lists(bytes_as_text, max_size=3).map(tuple)).map(MappingProxyType),
    arguments=st.lists(bytes_as_text, max_size=4).map(tuple),
)
orders = st.builds(
    Order,
    target=targets,
    path=bytes_as_text,
    private=st.booleans(),
    foreground=st.booleans(),
    batch=st.booleans(),
    persist=maybe,
    explicit_start=st.booleans(),
    password=maybe,
    log_file=maybe,
    debug=st.booleans(),
)
reports = st.builds(
    Report,
    kind=st.sampled_from(Kind),
    message=bytes_as_text,
    hint=bytes_as_text,
    exit_code=st.sampled_from(ExitCode),
    pid=st.none() | st.integers(1, 2**22),
    path=bytes_as_text,
)


@given(orders)
def test_an_order_there_and_back(order: Order) -> None:
    line = order.to_json()
    assert line.count("\n") == 1 and line.endswith("\n") and line.isascii()
    again = Order.from_json(line.encode())
    assert again == order
    assert dict(again.target.config) == dict(order.target.config)


@given(reports)
def test_a_report_there_and_back(report: Report) -> None:
    line = report.to_json()
    assert line.count("\n") == 1 and line.endswith("\n") and line.isascii()
    assert Report.from_json(line) == report


@given(st.binary(max_size=60))
def test_garbage_is_refused_by_name(garbage: bytes) -> None:
    for reader in (Order.from_json, Report.from_json):
        with pytest.raises(RemoteProtocolError, match="cannot be read"):
            reader(garbage)


@given(reports, st.data())
def test_a_part_of_a_line_is_refused(report: Report, data: st.DataObject) -> None:
    line = report.to_json().rstrip()
    with pytest.raises(RemoteProtocolError):
        Report.from_json(line[: data.draw(st.integers(0, len(line) - 1))])


def test_a_field_of_another_version_is_refused() -> None:
    values = json.loads(Report(Kind.READY).to_json())
    for changed in (values | {"colour": 1}, values | {"kind": "new"}, values | {"exit_code": 99}, [values]):
        with pytest.raises(RemoteProtocolError):
            Report.from_json(json.dumps(changed))


def test_a_password_is_in_the_line_and_nowhere_else() -> None:
    target = Target("box", "me", "127.0.0.1", 22, None, "", MappingProxyType({}), ())
    order = Order(target, "/c", password="swordfish")
    assert "swordfish" in order.to_json()
    assert "swordfish" not in repr(order) + str(order)
