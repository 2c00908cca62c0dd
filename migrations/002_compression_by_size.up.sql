-- The server decides how rows are compressed, and by the size of the part it can: LZ4
-- for those that merges rewrite soon, ZSTD for large ones, which stay. ZSTD from the
-- first insert on was a fifth of all that ClickHouse did for an event. deploy/clickhouse
-- and the embedded engine draw the line at 256 MiB; a server without such a rule uses
-- LZ4 throughout, a quarter to a third more disk. CODEC(Default) and not REMOVE CODEC,
-- which fails where there is none to remove: every statement may run twice.
ALTER TABLE events{{.OnCluster}}
    MODIFY COLUMN ts CODEC(Delta, Default),
    MODIFY COLUMN channel CODEC(Default),
    MODIFY COLUMN campaign_id CODEC(Default),
    MODIFY COLUMN user_id CODEC(Default),
    MODIFY COLUMN tags CODEC(Default),
    MODIFY COLUMN metadata CODEC(Default),
    MODIFY COLUMN received_at CODEC(Delta, Default),
    MODIFY COLUMN _offset CODEC(Delta, Default);

-- Every query reads states, and they hardly compress.
ALTER TABLE events_users{{.OnCluster}} MODIFY COLUMN u CODEC(LZ4);
