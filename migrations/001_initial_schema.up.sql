-- One row per accepted event, in parts by month: the contract takes events of
-- any time since 2000, in any mix, and by day one insert could make thousands of
-- parts. Minutes are small and go by year. The columns starting with an underscore say which
-- batch of which log wrote the row, so "is this batch in, whole, once?" is a
-- query and not a guess. Twenty parts of a size are merged into one, where the
-- default is five, which rewrites a row about twice as often: an answer reads only
-- minutes of this table. For the rollups it is twelve; a query reads each part of
-- them, and on the other hand their parts are small and their merges many. The ragged
-- ends of an answer's range are a granule of every part at least, hence the small
-- ones: a quarter off such a query, for 1 % of disk.
-- Only the name is LowCardinality: merging such a column, and an array of it more so,
-- costs twice what merging strings costs, which under ZSTD are nearly as small.
CREATE TABLE IF NOT EXISTS events{{.OnCluster}} (
    ts          DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    event_name  LowCardinality(String),
    channel     String CODEC(ZSTD(1)),
    campaign_id String CODEC(ZSTD(1)),
    user_id     String CODEC(ZSTD(1)),
    tags        Array(String) CODEC(ZSTD(1)),
    metadata    String CODEC(ZSTD(1)),
    event_id    UUID,
    received_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    _src        UInt32,
    _part       UInt32,
    _offset     UInt64 CODEC(Delta, ZSTD(1)),
    _first      UInt64,
    _last       UInt64,
    _rows       UInt32,
    _dup        UInt32,
    _dead       UInt32,
    INDEX ix_offset _offset TYPE minmax GRANULARITY 1,
    INDEX ix_received received_at TYPE minmax GRANULARITY 1
) ENGINE = {{.Engine "MergeTree"}}
PARTITION BY toYYYYMM(ts)
ORDER BY (event_name, ts)
SETTINGS index_granularity = 1024, merge_selector_base = 20;

-- Counts by minute. n is signed: a repair after a crash inserts the difference
-- between raw and rollup, which may be negative.
CREATE TABLE IF NOT EXISTS events_1m{{.OnCluster}} (
    m          DateTime('UTC'),
    event_name LowCardinality(String),
    channel    String CODEC(ZSTD(1)),
    n          SimpleAggregateFunction(sum, Int64)
) ENGINE = {{.Engine "AggregatingMergeTree"}}
PARTITION BY toYear(m)
ORDER BY (event_name, m, channel)
SETTINGS merge_selector_base = 12;

-- Counts and distinct users in buckets of several widths in seconds: five minutes,
-- an hour, a day, 16 days, 256 days; of each channel, and of all of them together
-- (by_channel = 0, no channel). Each width divides the next, so any range is a few
-- buckets of each and, at its ends, less than five minutes of rows. All states have
-- precision 14: 12 kB at most and 0.6 % off on average, where the default of 17
-- takes 98 kB and seven times as long to merge. A granule is what a query reads at
-- least, and 8192 rows of states are 100 MB: hence the small granules. Not
-- partitioned: a batch touches all the widths, and this way makes one part (of a hundred thousand
-- cells and more, a few).
CREATE TABLE IF NOT EXISTS events_users{{.OnCluster}} (
    event_name LowCardinality(String),
    by_channel UInt8,
    width      UInt32,
    at         DateTime('UTC'),
    channel    String CODEC(ZSTD(1)),
    n          SimpleAggregateFunction(sum, Int64),
    u          AggregateFunction(uniqCombined64(14), String)
) ENGINE = {{.Engine "AggregatingMergeTree"}}
ORDER BY (event_name, by_channel, width, at, channel)
SETTINGS index_granularity = 32, merge_selector_base = 12;

CREATE MATERIALIZED VIEW IF NOT EXISTS events_1m_mv{{.OnCluster}} TO events_1m AS
SELECT toStartOfMinute(ts) AS m, event_name, channel, toInt64(count()) AS n
FROM events
GROUP BY m, event_name, channel;

-- The rows are aggregated once, by five minutes and channel. Each of those states
-- then stands in ten buckets; which of them are the same bucket, the insert into
-- the table finds out, which sorts and merges its rows anyway.
CREATE MATERIALIZED VIEW IF NOT EXISTS events_users_mv{{.OnCluster}} TO events_users AS
SELECT event_name, by_channel, width, toDateTime(intDiv(toUnixTimestamp(t), width) * width, 'UTC') AS at, if(by_channel = 1, c, '') AS channel, n, u
FROM (
    SELECT event_name, channel AS c, toStartOfFiveMinutes(ts) AS t, toInt64(count()) AS n, uniqCombined64State(14)(user_id) AS u
    FROM events
    GROUP BY event_name, c, t
)
ARRAY JOIN
    [0, 0, 0, 0, 0, 1, 1, 1, 1, 1] AS by_channel,
    [300, 3600, 86400, 1382400, 22118400, 300, 3600, 86400, 1382400, 22118400] AS width;

-- Hours and days by channel, for dashboards and people.
CREATE VIEW IF NOT EXISTS events_1h{{.OnCluster}} AS
SELECT at AS h, event_name, channel, n, u FROM events_users WHERE by_channel = 1 AND width = 3600;

CREATE VIEW IF NOT EXISTS events_1d{{.OnCluster}} AS
SELECT toDate(at) AS d, event_name, channel, n, u FROM events_users WHERE by_channel = 1 AND width = 86400;

-- Batches that left no row in events because each of their records was a
-- duplicate or a dead letter: without them the proof of gapless coverage would
-- have holes. Written again after a crash, hence ReplacingMergeTree.
CREATE TABLE IF NOT EXISTS empty_batches{{.OnCluster}} (
    src   UInt32,
    part  UInt32,
    first UInt64,
    last  UInt64,
    dup   UInt32,
    dead  UInt32,
    at    DateTime('UTC')
) ENGINE = {{.Engine "ReplacingMergeTree"}}
ORDER BY (src, part, first);

-- One row per log this database has stored events of: which topic of which
-- cluster, and which life of it. Its number is the _src of every row.
CREATE TABLE IF NOT EXISTS sources{{.OnCluster}} (
    src         UInt32,
    cluster_id  String,
    topic_id    String,
    incarnation UInt32,
    topic       String,
    opened_at   DateTime('UTC')
) ENGINE = {{.Engine "ReplacingMergeTree"}}
ORDER BY (cluster_id, topic_id, incarnation);
