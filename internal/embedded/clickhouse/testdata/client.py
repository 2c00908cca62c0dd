"""Drives the server with python3-clickhouse-driver; prints ok."""
import sys
import uuid
from datetime import date, datetime, timezone
from decimal import Decimal

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException


def main():
    c = Client(sys.argv[1], port=int(sys.argv[2]))
    c.execute("""CREATE TABLE types (
        at DateTime64(3, 'UTC'), received DateTime('UTC'), day Date, name LowCardinality(String),
        tags Array(LowCardinality(String)), meta String, id UUID, u16 UInt16, u32 UInt32, u64 UInt64,
        i64 Int64, maybe Nullable(String), attrs Map(String, UInt64), pair Tuple(String, UInt8),
        price Decimal(18, 4), kind Enum8('a' = 1, 'b' = 2)
    ) ENGINE=MergeTree ORDER BY u64""")
    rows = []
    for i in range(1000):
        at = datetime(2024, 1, 2, 3, 4, i % 60, 5000, tzinfo=timezone.utc)
        rows.append((at, at.replace(microsecond=0, tzinfo=None), date(2024, 1, 2), "name-%d" % (i % 7), ["a", "b"][: i % 3],
                     "é" * (i % 50), uuid.UUID(int=i), i, i, i, -i, None if i % 2 else "m", {"k": i}, ("p", i % 256),
                     Decimal(i) / 4, "ab"[i % 2]))
    assert c.execute("INSERT INTO types VALUES", rows) == len(rows)
    got = c.execute("SELECT * FROM types ORDER BY u64")
    assert got == rows, (got[:2], rows[:2])

    try:
        c.execute("SELECT * FROM nothing")
        raise AssertionError("no exception")
    except ServerException as e:
        assert e.code == 60, e.code
    assert c.execute("SELECT 1") == [(1,)]
    assert c.execute("SELECT getSetting('max_block_size')", settings={"max_block_size": 11}) == [(11,)]
    assert c.execute("SELECT number FROM numbers(3) WHERE number > 5") == []

    blocks = sum(1 for _ in c.execute_iter("SELECT number FROM numbers(200000)"))
    assert blocks == 200000, blocks

    progress = c.execute_with_progress("SELECT sleepEachRow(0.1) FROM numbers(600) SETTINGS max_block_size=1")
    del progress
    c.cancel()
    assert c.execute("SELECT 2") == [(2,)]
    print("ok")


main()
